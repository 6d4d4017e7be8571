"""Rows refuse NaN, settings make fingerprints, and YAML lists become analyses or one clear line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from analysis.base import Analysis, Attachment, Row
from analysis.measures import ConceptOverlap, build_analyses, load_analyses
from analysis.snapshots import Snapshot


@dataclass(kw_only=True)
class Counting(Analysis):
    default_name: ClassVar[str] = "counting"
    texts: str = ""
    languages: tuple[str, ...] = ("de", "en")
    batch_tokens: int = 64

    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        yield Row(metric="languages", value=float(len(self.languages)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["value", "chance", "low", "high", "p"])
def test_a_row_refuses_numbers_that_would_spoil_a_plot(field: str, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"accuracy: {field} is"):
        Row(**{"metric": "accuracy", "value": 1.0, "layer": 3} | {field: bad})


def test_an_interval_of_which_nothing_is_known_is_none() -> None:
    nan = float("nan")
    row = Row(metric="accuracy", value=1.0, low=nan, high=nan)
    assert (row.low, row.high) == (None, None)
    for low, high in ((nan, 2.0), (0.5, nan)):
        with pytest.raises(ValueError, match="is nan"):
            Row(metric="accuracy", value=1.0, low=low, high=high)


def test_fingerprint_follows_what_changes_numbers_and_nothing_else(tmp_path: Path) -> None:
    base = Counting()
    assert base.fingerprint() == Counting().fingerprint()
    assert base.fingerprint() == Counting(batch_tokens=8).fingerprint(), "batching cannot change a number"
    assert base.fingerprint() == Counting(name="again").fingerprint()
    assert base.fingerprint() != Counting(languages=("en",)).fingerprint()


def test_fingerprint_follows_the_content_of_files(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one")
    before = Counting(texts=str(path)).fingerprint()
    path.write_text("two")
    assert Counting(texts=str(path)).fingerprint() != before
    moved = tmp_path / "moved.txt"
    moved.write_text("one")
    assert Counting(texts=str(moved)).fingerprint() == before, "the content counts, not the path"


def test_a_yaml_list_becomes_analyses(tmp_path: Path) -> None:
    here = f"{Counting.__module__}.{Counting.__qualname__}"
    path = tmp_path / "list.yaml"
    path.write_text(f"analyses:\n- class_path: {here}\n  init_args: {{languages: [fr, en]}}\n")
    (analysis,) = load_analyses(path)
    assert analysis.name == "counting"
    assert tuple(analysis.languages) == ("fr", "en")  # type: ignore[attr-defined]


def test_errors_of_a_list_name_the_file_and_the_culprit(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    with pytest.raises(FileNotFoundError, match="list.yaml"):
        load_analyses(path)
    path.write_text("analyses: [}")
    with pytest.raises(ValueError, match="list.yaml: not valid YAML"):
        load_analyses(path)
    path.write_text("metrics: []")
    with pytest.raises(ValueError, match="expected a key 'analyses'"):
        load_analyses(path)
    path.write_text("analyses:\n- class_path: analysis.nowhere.Nothing\n")
    with pytest.raises(ValueError, match="Nothing") as caught:
        load_analyses(path)
    assert "\n" not in str(caught.value)


def test_two_analyses_of_one_name_are_refused() -> None:
    here = f"{Counting.__module__}.{Counting.__qualname__}"
    with pytest.raises(ValueError, match="two analyses are called 'counting'"):
        build_analyses([{"class_path": here}, {"class_path": here}])


def test_a_name_that_cannot_be_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        Counting(name="a/b")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"k": 0}, "k=0 must be at least 1"),
        ({"max_positives": -1}, "max_positives=-1 must be at least 1"),
        ({"seed": -3}, "seed=-3 must be at least 0"),
        ({"sentences": -1}, "sentences=-1 must be at least 0"),
        ({"share": float("nan")}, "share=nan must be finite"),
        ({"shares": [0.1, float("inf")]}, "must be finite"),
        ({"languages": ["en", "es", "en"]}, "'en' is listed twice"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_when_the_list_is_read(given: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"overlap: .*{re.escape(named)}"):
        ConceptOverlap(concepts="anything.parquet", **given)
