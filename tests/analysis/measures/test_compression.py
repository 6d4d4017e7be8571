"""The compression analysis: rows, chance levels, planted sharing in a real model's embeddings, bad settings."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.extraction.states import iter_token_states
from analysis.measures import build_analyses
from analysis.measures.compression import Compression, _row
from analysis.snapshots import Snapshot
from analysis.statistics import mean_interval
from babelscope.records import Clone

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
    return Compression(texts=path, **({"splits": ["test"], "tokens_per_language": 200} | options))  # type: ignore[arg-type]


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
        assert _one(rows, "intrinsic_dimension", -1).value < 8
        found[name] = _one(rows, "sharing", -1)
    assert found["same"].value > 0.7  # sixteen letters a language do not fill four directions alike
    assert found["disjoint"].value < 0.05
    assert found["disjoint"].high < found["same"].low


def test_rows_are_complete_reproducible_and_have_intervals(
    texts: str, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    rows = list(_compression(texts).measure(snapshot))
    assert rows == list(_compression(texts).measure(snapshot))
    assert {row.layer for row in rows} == {-1, 0, 1, None}
    assert len(rows) == 4 + 1 + 4
    for row in rows:
        assert row.low < row.value < row.high
    layers = [_one(rows, "sharing", layer).value for layer in (-1, 0, 1)]
    assert _one(rows, "sharing", None).value == pytest.approx(np.mean(layers))
    assert _one(rows, "sharing", None, "aa", "bb").value == pytest.approx(np.mean(layers))


@pytest.mark.parametrize("buckets", [4, 20])
def test_intervals_are_students_with_as_much_freedom_as_there_are_buckets(buckets: int) -> None:
    """For a mean, leaving values out one by one gives its own standard error."""
    values = np.random.default_rng(0).normal(size=buckets)
    without = (values.sum() - values) / (buckets - 1)
    (row,) = _row("sharing", np.array([values.mean(), *without]), 0.0)
    assert (row.low, row.high) == pytest.approx(mean_interval(values))


def test_texts_that_begin_alike_count_once_whatever_rounding_makes_of_their_states(
    texts: str, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    expected = list(_compression(texts).measure(snapshot))

    def rounded(*given: object) -> Iterator[tuple[object, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for site, values in iter_token_states(*given):  # type: ignore[arg-type]
            yield site, values * (1 + 1e-6 * torch.randn(values.shape, generator=generator))

    monkeypatch.setattr("analysis.measures.compression.iter_token_states", rounded)
    for one, row in zip(expected, _compression(texts).measure(snapshot), strict=True):
        if row.layer in (0, 1):  # embeddings are looked up, not rounded
            assert row.value == pytest.approx(one.value, rel=1e-3), (row.metric, row.layer)


def test_collapsed_states_have_no_dimension_and_no_mean_over_layers(
    texts: str, tiny_llama: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    """A layer of dimension 0 would lower the mean of the others."""
    collapsed = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        collapsed.model.embed_tokens.weight.fill_(1.0)
    rows = list(_compression(texts).measure(tiny_snapshot(collapsed)))
    assert "intrinsic_dimension" not in {row.metric for row in rows if row.layer in (-1, None)}


def test_clones_are_in_the_rows_of_pairs_alone(
    texts: str, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    model = copy.deepcopy(tiny_xglm)
    plain = tiny_snapshot(model)
    model.resize_token_embeddings(2 * len(plain.tokenizer))
    cloned = replace(plain, clones={"cc": Clone("aa", len(plain.tokenizer))})
    without, rows = (list(_compression(texts).measure(snapshot)) for snapshot in (plain, cloned))
    assert {(row.language, row.other_language) for row in rows if row.language} == {
        ("aa", "bb"),
        ("aa", "cc"),
        ("bb", "cc"),
    }
    assert _one(rows, "sharing", None).value == pytest.approx(_one(rows, "sharing", None, "aa", "bb").value)
    for layer in (-1, 0, 1):
        one, other = (_one(found, "intrinsic_dimension", layer) for found in (without, rows))
        assert other.value == pytest.approx(one.value, rel=1e-3)
    alone = list(_compression(texts, languages=["aa", "cc"]).measure(cloned))
    assert _one(alone, "sharing", None).value == pytest.approx(_one(alone, "sharing", None, "aa", "cc").value)


def test_fewer_tokens_than_dimensions(texts: str, tiny_bloom: PreTrainedModel, tiny_snapshot: Callable) -> None:
    rows = list(_compression(texts, tokens_per_language=24, tokens_per_text=2).measure(tiny_snapshot(tiny_bloom)))
    assert all(np.isfinite(row.value) for row in rows)
    assert {row.metric for row in rows} >= {"intrinsic_dimension"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": 5}, "buckets=5"),
        ({"buckets": 2}, "buckets=2"),
        ({"languages": ["aa"]}, "one language"),
        ({"languages": ["aa", "zz"]}, "no language 'zz'"),
        ({"tokens_per_language": 5}, "has only . tokens in one half"),
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
