"""Concept files of ml-selfcond are read as published, and refused by name if malformed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.concepts.dataset import load_concepts


def publish(folder: Path, place: str, concept: str, **extra: object) -> Path:
    """A file as the published code writes it: no language, no uids, a sense in the name."""
    path = folder / place / "sense" / f"{concept}-1_14_00.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    sentences = {
        side: [f"{place} {concept} {side} {number}" for number in range(count)]
        for side, count in (("positive", 10), ("negative", 30))
    }
    content = {"concept": concept, "group": "sense", "source": "onesec", "sentences": sentences, **extra}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_published_folder_is_read_by_language(tmp_path: Path) -> None:
    for language in ("de", "en"):
        for concept in ("house", "fire"):
            publish(tmp_path, language, concept)
    loaded = load_concepts(tmp_path)
    assert loaded.languages == ("de", "en")
    assert set(loaded.concepts) == {"house", "fire"}
    pool = loaded.pools["de"]
    assert len(pool.positives["house"]) == 10
    assert len(pool.negatives["house"]) == 30
    assert "de house positive 3" in pool.texts


def test_language_field_overrules_the_folder_and_one_file_is_enough(tmp_path: Path) -> None:
    path = publish(tmp_path, "folder", "house", language="es")
    assert load_concepts(tmp_path).languages == ("es",)
    assert load_concepts(path).languages == ("es",)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not JSON"),
        ("[]", "expected concept and sentences"),
        ('{"concept": "a", "sentences": {"positive": []}}', "expected concept and sentences"),
        ('{"concept": "a", "language": "en", "sentences": {"positive": [3], "negative": []}}', "sentence 0 is 3"),
        ('{"concept": "a", "sentences": {"positive": ["x"], "negative": []}}', "no language"),
        (
            '{"concept": "a", "language": "en", "sentences": {"positive": ["x"], "negative": []},'
            ' "uids": {"positive": ["1", "2"]}}',
            "1 positive sentences but 2 uids",
        ),
    ],
)
def test_malformed_files_are_named(content: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=match):
        load_concepts(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent: no such concept file"):
        load_concepts(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no concept files"):
        load_concepts(tmp_path / "empty")
