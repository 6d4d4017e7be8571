"""Which dtype attention is computed in; that its values are right is tested with the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from train.model import attention
from train.model.xglm import XGLMForCausalLM, build_config


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes in which attention was asked for, after autocast."""
    seen: list[torch.dtype] = []
    plain = F.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
        result: Tensor = plain(query, key, value, **options)
        seen.append(result.dtype)
        return result

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    return seen


def step(model: XGLMForCausalLM, ids: Tensor, segments: Tensor | None = None) -> dict[str, Tensor]:
    """Gradients of one step under autocast."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(input_ids=ids, labels=ids, segment_ids=segments)
        assert output.loss.dtype == torch.float32
    output.loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("packed", [False, True])
def test_short_blocks_in_float32_and_long_ones_in_bfloat16(
    packed: bool, calls: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 64, "num_layers": 2, "attention_heads": 2, "ffn_dim": 128}
    model = XGLMForCausalLM(build_config(**sizes, dropout=0.0)).train()
    ids = torch.randint(3, 64, (2, 16))
    segments = (torch.arange(16) // 6).expand(2, 16) if packed else None
    monkeypatch.setattr(attention, "FLOAT32_LENGTH", 16)
    short = step(model, ids, segments)
    assert calls == [torch.float32] * 2
    calls.clear()
    monkeypatch.setattr(attention, "FLOAT32_LENGTH", 15)
    long = step(model, ids, segments)
    assert calls == [torch.bfloat16] * 2
    for name, gradient in long.items():
        assert short[name].dtype == gradient.dtype == torch.float32
        assert (short[name] - gradient).norm() <= 0.05 * gradient.norm() + 1e-6, name
    calls.clear()
    low = model.to(torch.bfloat16)
    assert low(ids[:, :15], use_cache=False).logits.dtype == torch.bfloat16
    assert calls == [torch.float32] * 2
    calls.clear()
    assert model.double()(ids[:, :15], use_cache=False).logits.dtype == torch.float64
    assert calls == [torch.float64] * 2, "no precision is lost"
