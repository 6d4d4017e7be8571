"""Our XGLM against transformers' XGLM: logits, loss, every gradient, padding, cache, hooks, saving."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.xglm import modeling_xglm

from train.model.positions import SinusoidalPositions, positions_from_mask, positions_in_segments, segment_mask
from train.model.tying import tie
from train.model.xglm import XGLMForCausalLM, build_config

VOCABULARY = 384
SMALL = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "num_layers": 2,
    "attention_heads": 4,
    "ffn_dim": 64,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}
LEFT = torch.tensor([[0] * 5 + [1] * 15, [1] * 20, [0] * 12 + [1] * 8])
RIGHT = LEFT.flip(1)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    """Token ids (3, 20)."""
    return torch.randint(3, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def stock(tiny_xglm: PreTrainedModel) -> PreTrainedModel:
    """transformers' class with random weights, biases and norms."""
    torch.manual_seed(7)
    model = copy.deepcopy(tiny_xglm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (parameter.dim() == 1) * parameter)
    return model


@pytest.fixture
def ours(stock: PreTrainedModel) -> XGLMForCausalLM:
    """Our class with the weights of ``stock``."""
    model = XGLMForCausalLM(build_config(**{**SMALL, "max_position_embeddings": 256})).eval()
    model.load_state_dict(stock.state_dict())
    return model


def _gradients(model: nn.Module, **inputs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def _assert_same_gradients(ours: dict[str, Tensor], stock: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == stock.keys()
    scale = max(gradient.norm() for gradient in stock.values())
    for name, expected in stock.items():
        # The gradient of a key's bias is zero but for rounding, so errors are measured on the scale of the model too.
        error = (ours[name] - expected).norm()
        assert error < tolerance * max(expected.norm(), 1e-2 * scale), name


def test_the_study_model_has_exactly_its_parameters() -> None:
    with torch.device("meta"):
        model = XGLMForCausalLM(build_config())
    assert sum(parameter.numel() for parameter in model.parameters()) == 257_115_136


def test_the_same_seed_gives_the_same_weights_under_the_same_names() -> None:
    torch.manual_seed(3)
    expected = transformers.XGLMForCausalLM(build_config(**SMALL)).state_dict()
    torch.manual_seed(3)
    weights = XGLMForCausalLM(build_config(**SMALL)).state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_logits_and_hidden_states_agree(ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor) -> None:
    expected = stock(ids, output_hidden_states=True)
    result = ours(ids, output_hidden_states=True)
    assert torch.allclose(result.logits, expected.logits, atol=2e-5)
    assert len(result.hidden_states) == len(expected.hidden_states) == 3
    for state, expected_state in zip(result.hidden_states, expected.hidden_states, strict=True):
        assert torch.allclose(state, expected_state, atol=2e-5)


@pytest.mark.parametrize("backend", ["vocab", "tokens", "naive"])
def test_loss_and_every_gradient_agree(
    ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor, backend: str
) -> None:
    ours.loss_backend = backend
    labels = ids.clone()
    labels[0, 4:9] = -100
    assert ours(ids, labels=labels).loss.item() == pytest.approx(stock(ids, labels=labels).loss.item(), rel=1e-6)
    _assert_same_gradients(
        _gradients(ours, input_ids=ids, labels=labels), _gradients(stock, input_ids=ids, labels=labels)
    )


def test_gradients_agree_in_bfloat16_within_its_precision(
    ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor
) -> None:
    exact = _gradients(stock, input_ids=ids, labels=ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        naive = _gradients(stock, input_ids=ids, labels=ids)
        result = _gradients(ours, input_ids=ids, labels=ids)

    def error(gradients: dict[str, Tensor]) -> float:
        difference = torch.cat([(gradients[name] - exact[name]).flatten() for name in exact])
        return (difference.norm() / torch.cat([value.flatten() for value in exact.values()]).norm()).item()

    assert error(result) < max(1.3 * error(naive), 5e-3) < 5e-2


@pytest.mark.parametrize("length", [1, 2, 7, 33])
def test_ragged_lengths_agree(ours: XGLMForCausalLM, stock: PreTrainedModel, length: int) -> None:
    ids = torch.randint(3, VOCABULARY, (2, length))
    assert torch.allclose(ours(ids).logits, stock(ids).logits, atol=2e-5)
    if length > 1:
        assert ours(ids, labels=ids).loss.item() == pytest.approx(stock(ids, labels=ids).loss.item(), rel=1e-6)


@pytest.mark.parametrize("mask", [LEFT, RIGHT], ids=["left", "right"])
def test_padding_agrees_with_each_text_alone(
    ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor, mask: Tensor
) -> None:
    logits = ours(ids, attention_mask=mask).logits
    for row in range(ids.shape[0]):
        kept = mask[row].bool()
        assert torch.allclose(logits[row, kept], stock(ids[row, kept][None]).logits[0], atol=2e-5)


def test_stock_left_padding_is_wrong_without_positions(stock: PreTrainedModel, ids: Tensor) -> None:
    """The reason for our own positions; if transformers mends this, they can go."""
    kept = LEFT[0].bool()
    logits = stock(ids, attention_mask=LEFT).logits[0, kept]
    assert not torch.allclose(logits, stock(ids[:1, kept]).logits[0], atol=1e-2)


@pytest.mark.parametrize("mask", [LEFT, RIGHT], ids=["left", "right"])
def test_gradients_agree_under_padding(
    ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor, mask: Tensor
) -> None:
    labels = ids.masked_fill(mask == 0, -100)
    ours_gradients = _gradients(ours, input_ids=ids, attention_mask=mask, labels=labels)
    # transformers' class also lets the last token of left padding predict the first real one.
    first = F.pad(mask[:, 1:] > mask[:, :-1], (1, 0))
    positions = positions_from_mask(mask, ids.shape[1])
    stock_gradients = _gradients(
        stock, input_ids=ids, attention_mask=mask, position_ids=positions, labels=labels.masked_fill(first, -100)
    )
    _assert_same_gradients(ours_gradients, stock_gradients)


def test_given_positions_are_used(ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor) -> None:
    positions = torch.arange(20).flip(0).expand_as(ids)
    expected = stock(ids, attention_mask=RIGHT, position_ids=positions).logits
    logits = ours(ids, attention_mask=RIGHT, position_ids=positions).logits
    assert torch.allclose(logits[RIGHT.bool()], expected[RIGHT.bool()], atol=2e-5)


@pytest.mark.parametrize("mask", [None, LEFT], ids=["unpadded", "left"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_the_same(
    ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor, mask: Tensor | None, use_cache: bool
) -> None:
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 1}
    expected = stock.generate(ids, use_cache=True, **options)
    assert torch.equal(ours.generate(ids, use_cache=use_cache, **options), expected)


def test_generation_with_beams_and_a_static_cache_is_the_same(
    ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor
) -> None:
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(ours.generate(ids, num_beams=3, **options), stock.generate(ids, num_beams=3, **options))
    static = ours.generate(ids, cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(static, stock.generate(ids, **options))


def test_a_cache_continues_where_the_prefix_ended(ours: XGLMForCausalLM, ids: Tensor) -> None:
    whole = ours(ids, attention_mask=LEFT).logits
    prefix = ours(ids[:, :14], attention_mask=LEFT[:, :14], use_cache=True)
    rest = ours(ids[:, 14:], attention_mask=LEFT, past_key_values=prefix.past_key_values).logits
    assert torch.allclose(rest, whole[:, 14:], atol=2e-5)


def test_packed_documents_do_not_see_each_other(ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor) -> None:
    segments = torch.tensor([[0] * 6 + [1] * 9 + [0] * 5, [3] * 20, [0, 1] * 10])
    logits = ours(ids, segment_ids=segments).logits
    for start, stop in ((0, 6), (6, 15), (15, 20)):
        assert torch.allclose(logits[0, start:stop], stock(ids[:1, start:stop]).logits[0], atol=2e-5)
    assert torch.allclose(logits[1], stock(ids[1:2]).logits[0], atol=2e-5)
    assert torch.allclose(logits[2, 7], stock(ids[2:, 7:8]).logits[0, 0], atol=2e-5)


def test_packed_documents_with_padding_and_loss(ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor) -> None:
    segments = torch.tensor([[4] * 8 + [9] * 12])
    mask = torch.tensor([[1] * 17 + [0] * 3])
    labels = ids[:1].masked_fill(mask == 0, -100)
    labels[0, 8] = -100  # the first token of a document, which transformers' class cannot predict from the other one
    loss = ours(ids[:1], attention_mask=mask, segment_ids=segments, labels=labels).loss
    parts = [(stock(ids[:1, a:b], labels=ids[:1, a:b]).loss.item(), b - a - 1) for a, b in ((0, 8), (8, 17))]
    assert loss.item() == pytest.approx(sum(x * n for x, n in parts) / sum(n for _, n in parts), rel=1e-5)


def test_eager_attention_stays_available(ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor) -> None:
    config = build_config(**{**SMALL, "max_position_embeddings": 256})
    eager = XGLMForCausalLM._from_config(config, attn_implementation="eager").eval()
    eager.load_state_dict(stock.state_dict())
    expected = stock(ids, output_attentions=True)
    result = eager(ids, output_attentions=True)
    assert torch.allclose(result.logits, expected.logits, atol=2e-5)
    assert len(result.attentions) == 2
    assert torch.allclose(result.attentions[1], expected.attentions[1], atol=1e-6)
    segments = torch.arange(20).expand_as(ids) // 6
    packed = ours(ids, segment_ids=segments).logits
    assert torch.allclose(eager(ids, segment_ids=segments).logits, packed, atol=2e-5)


def test_hooks_fire_on_every_linear(ours: XGLMForCausalLM, ids: Tensor) -> None:
    heard: list[str] = []
    for name, module in ours.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.register_forward_hook(lambda *_, name=name: heard.append(name))
    ours(ids)
    linears = [f"model.layers.{i}.{part}" for i in range(2) for part in ("fc1", "fc2")]
    linears += [f"model.layers.{i}.self_attn.{part}_proj" for i in range(2) for part in ("q", "k", "v", "out")]
    assert sorted(heard) == sorted([*linears, "model.embed_tokens", "lm_head"])
    heard.clear()
    ours(ids, labels=ids)
    assert sorted(heard) == sorted([*linears, "model.embed_tokens"])


def test_no_logits_are_made_beside_a_loss(ours: XGLMForCausalLM, ids: Tensor) -> None:
    result = ours(ids, labels=ids, logits_to_keep=1)
    assert result.logits is None
    (loss, *_) = ours(ids, labels=ids, return_dict=False)
    assert loss.item() == pytest.approx(result.loss.item())


def test_num_items_replaces_the_mean(ours: XGLMForCausalLM, ids: Tensor) -> None:
    mean = ours(ids, labels=ids).loss
    targets = ids.numel() - ids.shape[0]
    assert ours(ids, labels=ids, num_items=10).loss.item() == pytest.approx(mean.item() * targets / 10, rel=1e-6)
    counted = ours(ids, labels=ids, num_items=torch.tensor(10)).loss
    assert counted.item() == pytest.approx(mean.item() * targets / 10, rel=1e-6)


def test_gradient_checkpointing_changes_nothing(ours: XGLMForCausalLM, ids: Tensor) -> None:
    ours.train()
    expected = _gradients(ours, input_ids=ids, labels=ids)
    ours.gradient_checkpointing_enable()
    _assert_same_gradients(_gradients(ours, input_ids=ids, labels=ids), expected, tolerance=1e-6)
    assert ours.model.layers[0].gradient_checkpointing


@pytest.mark.slow
def test_a_compiled_body_gives_the_same_loss_and_gradients(ours: XGLMForCausalLM, ids: Tensor) -> None:
    expected = _gradients(ours, input_ids=ids, labels=ids)
    compiled = copy.deepcopy(ours)
    compiled.compile(backend="aot_eager")
    _assert_same_gradients(_gradients(compiled, input_ids=ids, labels=ids), expected, tolerance=1e-5)


def test_dropout_is_that_of_the_configuration(ids: Tensor) -> None:
    model = XGLMForCausalLM(build_config(**{**SMALL, "dropout": 0.5}))
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_attention_dropout_is_honoured_with_a_warning(ids: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    config = build_config(**SMALL)
    config.attention_dropout = 0.3
    model = XGLMForCausalLM(config)
    assert "leaves the fast attention path" in caplog.text
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_saved_folders_load_in_plain_transformers(ours: XGLMForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["XGLMForCausalLM"]
    plain, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(plain) is modeling_xglm.XGLMForCausalLM
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.allclose(plain.eval()(ids).logits, ours(ids).logits, atol=2e-5)
    again = XGLMForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config._attn_implementation == "sdpa"
    assert torch.equal(again(ids).logits, ours(ids).logits)
    assert torch.equal(again.model.embed_positions.weights, ours.model.embed_positions.weights)


def test_positions_survive_a_round_trip_through_bfloat16(
    ours: XGLMForCausalLM, stock: PreTrainedModel, ids: Tensor
) -> None:
    table = ours.model.embed_positions.weights.clone()
    expected = copy.deepcopy(stock).to(torch.bfloat16)(ids).logits
    low = copy.deepcopy(ours).to(torch.bfloat16)
    logits = low(ids).logits
    assert low.model.embed_positions.weights.dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    assert F.cosine_similarity(logits.float().flatten(), expected.float().flatten(), dim=0) > 0.999
    assert torch.equal(low.float().model.embed_positions.weights, table)


def test_loading_in_bfloat16_keeps_the_table(ours: XGLMForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path)
    low = XGLMForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(low.model.embed_positions.weights, ours.model.embed_positions.weights)
    assert low(ids).logits.dtype == torch.bfloat16


def test_the_table_grows_for_texts_beyond_the_limit(ours: XGLMForCausalLM, stock: PreTrainedModel) -> None:
    ids = torch.randint(3, VOCABULARY, (1, 300))
    assert torch.allclose(ours(ids).logits, stock(ids).logits, atol=5e-5)
    assert isinstance(ours.model.embed_positions, SinusoidalPositions)


def test_positions_and_masks_of_segments() -> None:
    segments = torch.tensor([[5, 5, 2, 2, 2, 5]])
    assert positions_in_segments(segments).tolist() == [[0, 1, 0, 1, 2, 0]]
    expected = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3), torch.ones(1, 1)).tril().bool()
    assert torch.equal(segment_mask(segments), expected[None, None])


def test_a_tied_gradient_is_the_sum_of_both_uses() -> None:
    weight = torch.randn(20, 4, requires_grad=True)
    ids = torch.tensor([[1, 3, 3], [5, 0, 19]])

    def objective(embedded: Tensor, head: Tensor) -> Tensor:
        return (embedded.tanh().flatten(0, 1) @ head.t()).square().sum()

    (expected,) = torch.autograd.grad(objective(F.embedding(ids, weight, padding_idx=1), weight), weight)
    tied = tie(weight)
    (gradient,) = torch.autograd.grad(objective(tied.look_up(ids, 1), tied.head), weight)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-5)
    # Two looks and two heads in one graph, and no head at all.
    tied = tie(weight)
    twice = objective(tied.look_up(ids, 1), tied.head) + objective(tied.look_up(ids, 1), tied.head)
    (gradient,) = torch.autograd.grad(twice, weight)
    assert torch.allclose(gradient, 2 * expected, rtol=1e-5, atol=1e-5)
    (expected,) = torch.autograd.grad(F.embedding(ids, weight).square().sum(), weight)
    (gradient,) = torch.autograd.grad(tie(weight).look_up(ids, None).square().sum(), weight)
    assert torch.allclose(gradient, expected)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_model": 0}, "d_model must be at least 1"),
        ({"d_model": 30}, "d_model 30 must be a multiple of attention_heads 4"),
        ({"d_model": 33, "attention_heads": 3}, "d_model must be even"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
        ({"vocab_size": 2}, "vocab_size must hold <s>, <pad> and </s>, not 2 tokens"),
    ],
)
def test_bad_sizes_are_named(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(**{**SMALL, **sizes})


def test_bad_calls_are_named(ours: XGLMForCausalLM, ids: Tensor) -> None:
    with pytest.raises(ValueError, match="choose one of auto"):
        XGLMForCausalLM(build_config(**SMALL), loss_backend="fast")
    with pytest.raises(ValueError, match="must have the shape of the tokens"):
        ours(ids, labels=ids[:, 1:])
    with pytest.raises(ValueError, match="label 384 lies outside"):
        ours(ids, labels=torch.full_like(ids, VOCABULARY))
    with pytest.raises(ValueError, match="attn_implementation='eager'"):
        ours(ids, output_attentions=True)
    cache = ours(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot be combined with past_key_values"):
        ours(ids, segment_ids=torch.zeros_like(ids), past_key_values=cache)
    config = build_config(**SMALL)
    config.add_cross_attention = True
    with pytest.raises(ValueError, match="add_cross_attention is not supported"):
        XGLMForCausalLM(config)
