"""Parameter and operation counts against the real modules and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from train import flops
from train.flops import count_parameters, flops_per_token, forward_flops, peak_flops, peak_flops_of
from train.model.xglm import XGLMForCausalLM, build_config

SMALL = {"vocab_size": 384, "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 80, "dropout": 0.0}


@pytest.mark.parametrize("sizes", [{}, SMALL])
def test_parameter_count_is_that_of_the_module(sizes: dict) -> None:
    config = build_config(**sizes)
    with torch.device("meta"):
        model = XGLMForCausalLM(config)
    count = count_parameters(config)
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    assert count.embedding == model.model.embed_tokens.weight.numel()
    assert count.body == count.total - count.embedding


def test_an_untied_head_is_counted() -> None:
    config = build_config(**SMALL)
    config.tie_word_embeddings = False
    with torch.device("meta"):
        model = XGLMForCausalLM(config)
    assert count_parameters(config).total == sum(parameter.numel() for parameter in model.parameters())


def test_the_study_model_takes_the_published_operations() -> None:
    forward = forward_flops(build_config(), 1024)
    assert (forward.linear, forward.attention, forward.head) == (251_658_240, 25_165_824, 262_152_192)
    assert flops_per_token(build_config(), 1024) == 3 * forward.total == 1_616_928_768


def test_forward_operations_agree_with_torchs_counter() -> None:
    config = build_config(**SMALL)
    model = XGLMForCausalLM(config).eval()
    ids = torch.randint(3, 384, (2, 16))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(ids, use_cache=False)
    counted = forward_flops(config, 16)
    # The counter sees the full square of scores, of which half is causal.
    assert counter.get_total_flops() == 2 * 16 * (counted.linear + 2 * counted.attention + counted.head)


def test_attention_grows_with_the_sequence_and_nothing_else_does() -> None:
    short, long = forward_flops(build_config(), 256), forward_flops(build_config(), 512)
    assert long.attention == 2 * short.attention
    assert (long.linear, long.head) == (short.linear, short.head)


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        forward_flops(build_config(), 0)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H20", 148),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_known_devices_have_their_dense_peak(name: str, tflops: float) -> None:
    assert peak_flops_of(name) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100X", "Tesla T4", "a device"])
def test_unknown_devices_have_none(name: str) -> None:
    assert peak_flops_of(name) is None


def test_the_peak_is_asked_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops("cpu") is None
    monkeypatch.setattr(flops.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(flops.torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops("cuda:0", torch.bfloat16) == pytest.approx(989.4e12)
    assert peak_flops("cuda", torch.float32) is None
