"""Concept directions in a model: a letter that marks the concept in one language or in all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.measures import build_analyses
from analysis.measures.concept_directions import ConceptDirections
from analysis.snapshots import Snapshot


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, dict[str, str]]], str]:
    """Sentences of random letters, with the concept's mark of their language five times in the positives."""

    def made(marks: dict[str, dict[str, str]]) -> str:
        generator = np.random.default_rng(0)
        lines = []
        for language in ("aa", "bb"):
            for number in range(120):
                carried = (*marks, None)[number % (len(marks) + 1)]
                text = "".join(generator.choice(list("abcdefgh "), 20)) + "."
                text += marks[carried][language] * 5 if carried else ""
                shared = {"language": language, "uid": f"u{number}", "text": text}
                lines += [{"concept": concept, "label": int(concept == carried), **shared} for concept in marks]
        path = tmp_path / "concepts.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        return str(path)

    return made


def _one(rows: list[Row], metric: str, **where: object) -> Row:
    where = {"layer": None, "language": None, "other_language": None, "concept": None} | where
    (row,) = [row for row in rows if row.metric == metric and all(getattr(row, k) == v for k, v in where.items())]
    return row


SAME = {"water": {"aa": "Q", "bb": "Q"}, "fire": {"aa": "X", "bb": "X"}, "wood": {"aa": "Z", "bb": "Z"}}
OWN = {"water": {"aa": "Q", "bb": "R"}, "fire": {"aa": "X", "bb": "Y"}, "wood": {"aa": "Z", "bb": "V"}}


def test_a_common_mark_transfers_and_own_marks_do_not(
    write: Callable[..., str], tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    rows = {
        name: list(ConceptDirections(concepts=write(marks)).measure(tiny_snapshot(tiny_xglm)))
        for name, marks in (("same", SAME), ("own", OWN))
    }
    for found in rows.values():
        assert _one(found, "direction_own", layer=-1).value > 0.95
        assert _one(found, "direction_cosine_own", layer=-1).value > 0.8
        assert _one(found, "direction_transfer").chance == pytest.approx(0.5, abs=0.06)
    assert _one(rows["same"], "direction_transfer", layer=-1).value > 0.95
    assert _one(rows["same"], "direction_cosine", language="aa", other_language="bb").value > 0.6
    assert _one(rows["own"], "direction_cosine", layer=-1).value < 0.8
    for where in ({}, {"language": "bb", "other_language": "aa"}, {"concept": "fire"}):
        assert _one(rows["same"], "direction_transfer", **where).value > 0.9


def test_rows_are_complete_and_reproducible(
    write: Callable[..., str], tiny_bloom: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    path, snapshot = write(SAME), tiny_snapshot(tiny_bloom)
    rows = list(ConceptDirections(concepts=path).measure(snapshot))
    assert rows == list(ConceptDirections(concepts=path).measure(snapshot))
    assert len(rows) == 4 * (3 + 1) + 3 + 2 + 1
    layers = [_one(rows, "direction_transfer", layer=layer).value for layer in (-1, 0, 1)]
    assert _one(rows, "direction_transfer").value == pytest.approx(np.mean(layers))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffles": 0}, "shuffles=0"),
        ({"languages": ["aa"]}, "one language"),
        ({"languages": ["aa", "zz"]}, "no language 'zz'"),
        ({"min_positives": 99}, "99"),
    ],
)
def test_bad_settings_are_named(
    options: dict[str, object],
    message: str,
    write: Callable[..., str],
    tiny_xglm: PreTrainedModel,
    tiny_snapshot: Callable[..., Snapshot],
) -> None:
    with pytest.raises(ValueError, match=message):
        list(ConceptDirections(concepts=write(SAME), **options).measure(tiny_snapshot(tiny_xglm)))  # type: ignore[arg-type]


def test_it_is_built_from_a_list_entry() -> None:
    entry = {"class_path": "ConceptDirections", "init_args": {"concepts": "none.jsonl", "pool": "weighted"}}
    (analysis,) = build_analyses([entry])
    assert analysis.name == "concept_directions"
