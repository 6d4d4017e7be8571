"""Losses of texts and tokens equal those of the whole model, whatever the batches."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from tokenizers import processors
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from analysis.extraction.losses import content_tokens, start_token, text_losses

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
