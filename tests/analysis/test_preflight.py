"""What a list of analyses cannot measure is said before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.base import Analysis
from analysis.measures import build_analyses
from analysis.preflight import check


@pytest.fixture
def listed(tmp_path: Path) -> list[Analysis]:
    """A probe on text of de, en, fr and concept neurons of en, fr with K = 40."""
    texts, concepts = tmp_path / "texts.jsonl", tmp_path / "concepts.jsonl"
    texts.write_text("".join(json.dumps({"uid": n, "de": "a", "en": "b", "fr": "c"}) + "\n" for n in range(3)))
    rows = [{"concept": "water", "language": name, "uid": "1", "text": "x", "label": 1} for name in ("en", "fr")]
    concepts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_analyses(
        [
            {"class_path": "LanguageProbe", "init_args": {"texts": str(texts)}},
            {"class_path": "ConceptOverlap", "init_args": {"concepts": str(concepts), "k": 40}},
        ]
    )


def test_a_list_that_fits_passes(listed: list[Analysis], tmp_path: Path) -> None:
    check(listed, languages=("de", "en", "fr"), excluded=[str(tmp_path / "concepts.jsonl")], num_units=41)
    check(listed)  # nothing is known of the run


def test_languages_that_are_not_trained_are_named_with_the_way_out(listed: list[Analysis]) -> None:
    with pytest.raises(ValueError, match=r"language_probe measures fr, .* set its languages: \[de, en\]"):
        check(listed, languages=("de", "en"))
    with pytest.raises(ValueError, match="overlap measures fr"):
        check(listed[1:], languages=("de", "en"))


def test_concept_sentences_that_are_trained_on_are_named(listed: list[Analysis]) -> None:
    with pytest.raises(ValueError, match=r"overlap: the sentences of .*concepts.jsonl .* add the file to data.exclude"):
        check(listed, excluded=["other.parquet"])


def test_a_copy_of_a_left_out_file_counts_as_the_file(listed: list[Analysis], tmp_path: Path) -> None:
    (tmp_path / "elsewhere.jsonl").write_bytes((tmp_path / "concepts.jsonl").read_bytes())
    check(listed, excluded=[tmp_path / "elsewhere.jsonl"])


def test_a_missing_concept_file_comes_with_the_command_that_makes_it(listed: list[Analysis], tmp_path: Path) -> None:
    (tmp_path / "concepts.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"make it with `python -m analysis label .*--out .*jsonl`"):
        check(listed)
    (tmp_path / "texts.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"texts.jsonl does not exist; give the path of parallel text"):
        check(listed)


def test_k_must_be_below_the_number_of_units(listed: list[Analysis]) -> None:
    with pytest.raises(ValueError, match="overlap: k is 40 but the model has 40 units"):
        check(listed, num_units=40)
