"""Batches are right-padded, bounded, and cover every text once."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from analysis.extraction.encoding import encode_texts, iter_batches, padding_id

TEXTS = ["a", "some longer text", "b c", "Übung macht den Meister", "日本語"]


def test_batches_cover_every_text_once_and_stay_in_bounds(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_texts(byte_tokenizer, TEXTS)
    batches = list(iter_batches(encoded, batch_tokens=32, pad_id=padding_id(byte_tokenizer)))
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(len(TEXTS)))
    assert len(batches) > 1
    read = 0
    for batch in batches:
        assert batch.start == read
        read += len(batch.indices)
        assert batch.input_ids.numel() <= 32 or len(batch.indices) == 1
        for row, index in enumerate(batch.indices.tolist()):
            count = len(encoded.ids[index])
            assert batch.input_ids[row, :count].tolist() == encoded.ids[index]
            assert batch.attention_mask[row].tolist() == [1] * count + [0] * (batch.input_ids.shape[1] - count)


def test_few_texts_of_different_lengths_are_not_mostly_padding(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_texts(byte_tokenizer, ["a" * length for length in range(1, 121)])
    batches = list(iter_batches(encoded, batch_tokens=4096, pad_id=1))
    whole, real = (sum(batch.attention_mask.numel() for batch in batches), sum(map(len, encoded.ids)))
    assert real > 0.9 * whole  # full batches: 0.76
    assert all(batch.input_ids.numel() > 400 for batch in batches[:-1]), "and none is tiny"
    alike = list(iter_batches(encode_texts(byte_tokenizer, ["abc"] * 2000), batch_tokens=4096, pad_id=1))
    assert [len(batch.indices) for batch in alike] == [1024, 976]


def test_special_tokens_do_not_count_wherever_they_stand(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_texts(byte_tokenizer, ["ab"])
    assert encoded.ids[0][0] == byte_tokenizer.eos_token_id
    assert encoded.content == [[False, True, True]]
    written = encode_texts(byte_tokenizer, ["a</s>b"])
    assert [flag for flag, token in zip(written.content[0], written.ids[0], strict=True) if token == 2] == [False] * 2


def test_padding_side_of_the_tokenizer_does_not_matter(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    left = copy.deepcopy(byte_tokenizer)
    left.padding_side = "left"
    for one, other in zip(
        iter_batches(encode_texts(byte_tokenizer, TEXTS), 64, 1), iter_batches(encode_texts(left, TEXTS), 64, 1),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(one.input_ids, other.input_ids)


@pytest.mark.parametrize("bad", ["", "</s>", "<pad><pad>"])
def test_text_without_content_is_named(bad: str, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"text 1 .*no token but special"):
        encode_texts(byte_tokenizer, ["good", bad])


def test_bad_arguments_are_refused(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="no texts"):
        encode_texts(byte_tokenizer, [])
    with pytest.raises(ValueError, match="batch_tokens=0"):
        next(iter_batches(encode_texts(byte_tokenizer, TEXTS), 0, 1))


def test_long_texts_are_cut(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_texts(byte_tokenizer, ["a" * 100], max_length=10)
    assert len(encoded.ids[0]) == 10


@pytest.mark.parametrize("given", [None, 50])
def test_a_tokenizer_is_saved_with_its_own_limit(
    given: int | None, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = copy.deepcopy(byte_tokenizer)
    if given is not None:
        tokenizer.backend_tokenizer.enable_truncation(given)
    encode_texts(tokenizer, ["a" * 100], max_length=10)
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["truncation"]
    assert (saved and saved["max_length"]) == given
