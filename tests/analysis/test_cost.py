"""Predicted costs rise with what they are made of, and a list's are found without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.cost import AROUND, Shape
from analysis.measures import build_analyses

SMALL = Shape(layers=2, width=16, ffn=64, vocabulary=256, body=10_000.0, head=8_192.0)


def write_texts(path: Path, split: str = "test") -> str:
    with path.open("w") as file:
        for number in range(40):
            for language in ("en", "es"):
                record = {"language": language, "uid": str(number), "split": split, "text": "abcdefgh" * 8}
                file.write(json.dumps(record) + "\n")
    return str(path)


def test_tokens_of_texts_by_their_bytes() -> None:
    assert SMALL.tokens([8, 16], max_length=100) == pytest.approx(2 + 4 + 8)
    assert SMALL.tokens([8, 16], max_length=6) == pytest.approx(1 + 4 + 6)
    assert SMALL.linear_units == 2 * (5 * 16 + 64)
    assert SMALL.read == 10_000.0 + AROUND * SMALL.linear_units


def test_every_text_analysis_of_the_default_list_is_predicted(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.jsonl")

    def work(name: str, **options: object) -> float:
        entry = {"class_path": name, "init_args": {"texts": texts, "splits": ["test"], **options}}
        (analysis,) = build_analyses([entry])
        found = analysis.work(SMALL)
        assert found is not None
        return found

    tokens = 33.0  # 64 bytes at 2 bytes a token, and the start token
    assert work("HeldOutLoss") == pytest.approx(80 * tokens * (SMALL.read + SMALL.head))
    assert work("HeldOutLoss", max_texts=10) == pytest.approx(20 * tokens * (SMALL.read + SMALL.head))
    assert work("Lape", tokens_per_language=99) == pytest.approx(2 * 99 * SMALL.read)
    sizes = {"tokens_per_language": 100, "test_tokens_per_language": 50}
    for name in ("LanguageProbe", "ProbeSuite"):
        assert 0 < work(name, **sizes) < work(name, **(sizes | {"tokens_per_language": 200}))
    assert work("ProbeSuite", **sizes, probes=["mlp"]) + work("ProbeSuite", **sizes, probes=["mdl"]) == pytest.approx(
        work("ProbeSuite", **sizes)
    )
    assert work("Alignment", permutations=400) - work("Alignment", permutations=200) == pytest.approx(
        work("Alignment", permutations=600) - work("Alignment", permutations=400)
    )
    assert work("Compression") > 0


def test_a_split_counts_under_any_of_its_names_and_a_new_file_is_read_anew(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", "dev")
    (analysis,) = build_analyses([{"class_path": "Lape", "init_args": {"texts": path, "splits": ["valid"]}}])
    found = analysis.work(SMALL)
    assert found is not None
    assert found > 0
    assert write_texts(tmp_path / "texts.jsonl", "train") == path
    assert analysis.work(SMALL) == 0


def test_what_nobody_predicts_is_none(tmp_path: Path) -> None:
    entry = {"class_path": "MinimalPairs", "init_args": {"pairs": str(tmp_path)}}
    assert build_analyses([entry])[0].work(SMALL) is None
