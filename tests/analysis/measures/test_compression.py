"""The compression analysis: rows, chance levels, planted sharing in a real model's embeddings, bad settings."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.measures import build_analyses
from analysis.measures.compression import Compression
from analysis.snapshots import Snapshot

ALPHABETS = {"aa": "abcdefghijklmnop", "bb": "ABCDEFGHIJKLMNOP"}


@pytest.fixture
def texts(tmp_path: Path) -> str:
    generator = np.random.default_rng(0)
    path = tmp_path / "texts.jsonl"
    with path.open("w") as file:
        for language, alphabet in ALPHABETS.items():
            for number in range(40):
                text = "".join(generator.choice(list(alphabet), 20))
                file.write(json.dumps({"language": language, "uid": str(number), "split": "test", "text": text}) + "\n")
    return str(path)


def _compression(path: str, **options: object) -> Compression:
    return Compression(texts=path, **({"splits": ["test"], "tokens_per_language": 200, "subspace": 4} | options))  # type: ignore[arg-type]


def _one(rows: list[Row], metric: str, layer: int | None, language: str | None = None, other: str | None = None) -> Row:
    (row,) = [r for r in rows if (r.metric, r.layer, r.language, r.other_language) == (metric, layer, language, other)]
    return row


def _with_embeddings(model: PreTrainedModel, offsets: dict[str, int]) -> PreTrainedModel:
    """A Llama-like model whose tokens of each language vary in 4 directions only, the first being `offsets`."""
    planted = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros_like(planted.model.embed_tokens.weight)
    tokenizer_ids = {character: 4 + index for index, character in enumerate(_byte_alphabet())}
    for language, alphabet in ALPHABETS.items():
        for character in alphabet:
            first = offsets[language]
            weight[tokenizer_ids[character], first : first + 4] = torch.randn(4, generator=generator)
    with torch.no_grad():
        planted.model.embed_tokens.weight.copy_(weight)
    return planted


def _byte_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def test_planted_subspaces_are_seen_in_the_embeddings(
    texts: str, tiny_llama: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    found = {}
    for name, offsets in {"same": {"aa": 0, "bb": 0}, "disjoint": {"aa": 0, "bb": 10}}.items():
        rows = list(_compression(texts).measure(tiny_snapshot(_with_embeddings(tiny_llama, offsets))))
        found[name] = rows
        assert _one(rows, "effective_rank", -1, "aa").value < 4.01
        assert _one(rows, "intrinsic_dimension", -1).value < 8
        assert _one(rows, "subspace_overlap", -1, "aa", "bb").chance == pytest.approx(4 / 32)
    assert _one(found["same"], "subspace_overlap", -1).value > 0.99
    assert _one(found["disjoint"], "subspace_overlap", -1).value < 0.01
    assert _one(found["same"], "sharing", -1).value > 0.7
    assert _one(found["disjoint"], "sharing", -1).value < 0.1
    gain = _one(found["same"], "sharing_gain", -1)
    assert gain.value > gain.chance
    assert _one(found["disjoint"], "effective_rank", -1).value > _one(found["same"], "effective_rank", -1).value + 1


def test_rows_are_complete_reproducible_and_have_intervals(
    texts: str, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    rows = list(_compression(texts).measure(snapshot))
    assert rows == list(_compression(texts).measure(snapshot))
    assert {row.layer for row in rows} == {-1, 0, 1, None}
    assert len(rows) == 4 * (3 * 3 + 3 + 2)
    for row in rows:
        assert row.low <= row.value <= row.high
    layers = [_one(rows, "effective_rank", layer).value for layer in (-1, 0, 1)]
    assert _one(rows, "effective_rank", None).value == pytest.approx(np.mean(layers))
    plain = list(_compression(texts, groups=0).measure(snapshot))
    assert all(row.low is None and row.high is None for row in plain)
    assert _one(plain, "effective_rank", 0).value == _one(rows, "effective_rank", 0).value


def test_fewer_tokens_than_dimensions(texts: str, tiny_bloom: PreTrainedModel, tiny_snapshot: Callable) -> None:
    rows = list(_compression(texts, tokens_per_language=20, groups=4).measure(tiny_snapshot(tiny_bloom)))
    assert _one(rows, "effective_rank", 0, "aa").value < 20
    assert -1 < _one(rows, "sharing", 0).value < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 1}, "groups=1"),
        ({"precision": 0.0}, "precision"),
        ({"subspace": 0}, "subspace=0"),
        ({"languages": ["aa"]}, "one language"),
        ({"languages": ["aa", "zz"]}, "no language 'zz'"),
        ({"tokens_per_language": 5}, "only 5 tokens"),
    ],
)
def test_bad_settings_are_named(
    options: dict[str, object], message: str, texts: str, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    with pytest.raises(ValueError, match=message):
        list(_compression(texts, **options).measure(tiny_snapshot(tiny_xglm)))


def test_it_is_built_from_a_list_entry(texts: str) -> None:
    (analysis,) = build_analyses([{"class_path": "Compression", "init_args": {"texts": texts}}])
    assert analysis.name == "compression"
