"""Streams hold each document once behind one separator, and bytes per token sum to the raw text exactly."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, XGLMTokenizer

from train.data.batches import segment_ids
from train.data.packing import Packer, bytes_of_tokens, canonical_json
from train.data.tokenizer import train_tokenizer
from train.model.positions import positions_in_segments

DATA = Path(__file__).parents[3] / "data"
TEXTS = ["Hello world", "é 中文 🏳️‍🌈", "", "written out: </s> <pad>", "हिन्दी "]


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    texts = pq.read_table(DATA / "embedded_udhr18.parquet", columns=["text"])["text"].to_pylist()
    return train_tokenizer({"all": texts}, vocab_size=700)


def test_documents_come_back_from_the_stream(trained: PreTrainedTokenizerFast) -> None:
    packed = Packer.of(trained).pack(TEXTS, count_bytes=False)
    assert packed.tokens.dtype == np.uint16
    assert packed.token_bytes is None
    assert packed.num_documents == 5
    assert packed.num_bytes == sum(len(text.encode()) for text in TEXTS)
    starts = np.flatnonzero(packed.tokens == 2)
    assert len(starts) == 5  # "</s>" inside a text is text
    documents = np.split(packed.tokens, starts[1:])
    assert [trained.decode(document[1:]) for document in documents] == TEXTS


def test_bytes_of_tokens_are_exact_for_a_byte_level_tokenizer(trained: PreTrainedTokenizerFast) -> None:
    packed = Packer.of(trained).pack(TEXTS, count_bytes=True)
    assert packed.token_bytes is not None
    starts = np.flatnonzero(packed.tokens == 2)
    assert (packed.token_bytes[starts] == 0).all()
    sums = np.add.reduceat(packed.token_bytes, starts)
    assert sums.tolist() == [len(text.encode()) for text in TEXTS]
    # oracle: a byte-level token of plain ASCII text is as long as its own string
    ids = trained("Hello world, again", add_special_tokens=False)["input_ids"]
    ascii_packed = Packer.of(trained).pack(["Hello world, again"], count_bytes=True)
    assert ascii_packed.token_bytes is not None
    assert ascii_packed.token_bytes[1:].tolist() == [len(token) for token in trained.convert_ids_to_tokens(ids)]


def test_bytes_sum_to_the_raw_text_whatever_a_tokenizer_normalises() -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "fi": 2, "x": 3}, unk_token="<unk>"))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for text in ("ﬁ x", "  x   ﬁ  ", "½ x ü 中"):
        encoding = backend.encode(text)
        counted = bytes_of_tokens(text, encoding)
        assert len(counted) == len(encoding.ids)
        assert counted.sum() == len(text.encode())
        assert (counted > 0).all()


def test_xglms_own_kind_of_tokenizer() -> None:
    words = [("▁" + word, -3.0) for word in ("hello", "world", "fi")]
    letters = [(letter, -4.0) for letter in "</>abcdefghijklmnopqrstuvwxyz½"]
    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = XGLMTokenizer(vocab=[*specials, ("▁", -2.0), *words, *letters])
    texts = ["hello  world", "ﬁ ½ 中文 world ", "end </s> hello"]
    packed = Packer.of(tokenizer).pack(texts, count_bytes=True)
    assert packed.token_bytes is not None
    # its vocabulary spells "</s>", which must not open a document in the middle of one
    starts = np.flatnonzero(packed.tokens == 2)
    assert np.add.reduceat(packed.token_bytes, starts).tolist() == [len(text.encode()) for text in texts]
    assert packed.tokens[: starts[1]].tolist() == tokenizer(texts[0])["input_ids"]
    assert tokenizer.convert_ids_to_tokens(packed.tokens[starts[2] :].tolist())[-2:] == ["<unk>", "▁hello"]


def test_a_large_vocabulary_needs_wider_integers_and_a_packer_can_be_pickled(trained: PreTrainedTokenizerFast) -> None:
    packer = Packer.of(trained)
    assert Packer(canonical_json(trained), 2, 3, 1 << 16).dtype == np.uint16
    assert Packer(canonical_json(trained), 2, 3, (1 << 16) + 1).dtype == np.uint32
    again = pickle.loads(pickle.dumps(packer))
    assert again.pack(TEXTS, count_bytes=False).tokens.tolist() == packer.pack(TEXTS, count_bytes=False).tokens.tolist()


def test_definition_does_not_depend_on_the_last_call(trained: PreTrainedTokenizerFast) -> None:
    before = canonical_json(trained)
    trained(["a", "a longer text"], padding=True, truncation=True, max_length=4)
    assert canonical_json(trained) == before
    assert len(Packer.of(trained).pack(["a longer text than four tokens"], count_bytes=False).tokens) > 6


def test_segments_and_positions_by_hand() -> None:
    ids = torch.tensor([[7, 8, 2, 9, 9, 2, 2, 5], [2, 4, 4, 4, 2, 4, 4, 4]])
    segments = segment_ids(ids, separator_id=2)
    assert segments.tolist() == [[0, 0, 1, 1, 1, 2, 3, 3], [0, 0, 0, 0, 1, 1, 1, 1]]
    assert positions_in_segments(segments).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 0, 1, 2, 3]]
