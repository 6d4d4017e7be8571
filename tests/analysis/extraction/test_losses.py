"""Losses of texts and tokens equal those of the whole model, whatever the batches."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from tokenizers import processors
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from analysis.extraction.encoding import Batch
from analysis.extraction.losses import content_tokens, start_token, text_losses, token_losses
from analysis.extraction.sites import find_sites

TEXTS = ["Guten Tag!", "日本語", "a", "The quick brown fox jumps over the lazy dog. " * 3]


def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    """Nats of one text from the whole model's logits, alone in its batch."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    return float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))


@pytest.mark.parametrize("kind", ["tiny_xglm", "tiny_bloom", "tiny_gpt2", "tiny_neox", "tiny_llama"])
def test_losses_are_those_of_the_whole_model(
    kind: str, byte_tokenizer: PreTrainedTokenizerFast, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    tokens = content_tokens(byte_tokenizer, TEXTS)
    expected = [reference(model, byte_tokenizer, text) for text in TEXTS]
    for batch_tokens in (8, 1000):
        losses = text_losses([model], byte_tokenizer, tokens, max_length=256, batch_tokens=batch_tokens)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_long_text_is_scored_in_windows_every_token_once(
    tiny_bloom: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "abcdefghij" * 3
    whole = text_losses(
        [tiny_bloom], byte_tokenizer, content_tokens(byte_tokenizer, [text]), max_length=11, batch_tokens=64
    )
    parts = [reference(tiny_bloom, byte_tokenizer, "abcdefghij")] * 3
    assert whole[0] == pytest.approx(sum(parts), rel=1e-5)


def test_a_tokenizer_that_adds_nothing_starts_with_the_document_separator(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    plain = deepcopy(byte_tokenizer)
    plain.backend_tokenizer.post_processor = processors.ByteLevel()
    assert plain("a")["input_ids"] == byte_tokenizer("a")["input_ids"][1:]
    assert start_token(plain) == start_token(byte_tokenizer) == byte_tokenizer.eos_token_id


ACCEPTED = (
    "apertus arcee beam bitnet bloom cohere cohere2 cwm diffllama doge ernie4_5 exaone4 gemma gemma2 gemma3_text",
    "gemma4_unified_text gpt2 gpt_neox granite granite_swa helium hunyuan_v1_dense hyperclovax jais2 llama ministral",
    "ministral3 mistral nemotron olmo olmo2 olmo3 qwen2 qwen3 seed_oss smollm3 stablelm vaultgemma xglm",
)
"""`model_type` of every architecture of transformers that `find_sites` takes in full."""
MIXTURES = ("afmoe ernie4_5_moe exaone_moe glm4_moe granitemoe laguna mixtral olmoe qwen2_moe qwen3_moe",)
"""Measured by states and losses, not by unit."""
SCALED = (
    "beam cohere cohere2 gemma2 gemma3_text gemma4_unified_text granite granite_swa granitemoe hyperclovax vaultgemma",
)


def names(lines: tuple[str, ...]) -> list[str]:
    return [name for line in lines for name in line.split()]


@pytest.mark.parametrize("model_type", names(ACCEPTED + MIXTURES))
def test_losses_are_those_of_transformers_in_every_architecture(
    model_type: str, tiny_of: Callable[[str], PreTrainedModel]
) -> None:
    model = tiny_of(model_type)
    if model_type in names(ACCEPTED):
        kinds = [{site.kind for site in find_sites(model) if site.layer == layer} for layer in range(3)]
        assert kinds[0] == kinds[1] == kinds[2] >= {"attn.out", "mlp.in", "mlp.out"}
    lengths = torch.tensor([9, 6])
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    content = torch.arange(9) < lengths[:, None]
    batch = Batch(torch.arange(2), ids.where(content, 0), content.long(), content)
    with torch.no_grad():
        labels = ids.where(content, -100)
        expected = float(model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss)
    before = {name: id(module) for name, module in model.named_modules()}
    nats, rows = token_losses(model, batch)
    assert torch.bincount(rows).tolist() == [8, 5]
    assert float(nats.mean()) == pytest.approx(expected, abs=1e-4)
    wanted = content & (torch.arange(9) % 3 == 1)
    some, of = token_losses(model, batch, wanted)
    assert of.tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(some, nats[wanted[:, 1:][content[:, 1:]]], rtol=1e-5, atol=1e-5)
    assert before == {name: id(module) for name, module in model.named_modules()}
    if model_type in names(SCALED):
        with torch.no_grad():
            plain = model.get_output_embeddings()(model.base_model(**vars_of(batch))[0])[:, :-1][content[:, 1:]]
        wrong = float(F.cross_entropy(plain, ids[:, 1:][content[:, 1:]]))
        assert abs(wrong - expected) > 0.02, "the test would not notice a missing scale"


def vars_of(batch: Batch) -> dict[str, torch.Tensor]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
