"""Texts come in two layouts, keep their keys, and bad files are named with the line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.concepts.aligned import read_aligned
from analysis.texts import Text, read_texts

LONG = [
    {"lang": "en", "doc": "d", "sent_id": "1", "split": "train", "text": "one"},
    {"lang": "de", "doc": "d", "sent_id": "1", "split": "train", "text": "eins"},
    {"lang": "en", "doc": "d", "sent_id": "2", "split": "test", "text": "two"},
    {"lang": "de", "doc": "d", "sent_id": "2", "split": "test", "text": "zwei"},
    {"lang": "en", "doc": "d", "sent_id": "3", "split": "test", "text": "three"},
]


def write(path: Path, records: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["texts.parquet", "texts.jsonl"])
def test_long_layout(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, LONG)
    assert read_texts(path)["de"] == [Text("d/1", "eins"), Text("d/2", "zwei")]
    assert read_texts(path, languages=["en"], splits=["train"]) == {"en": [Text("d/1", "one")]}


def test_lang_counts_before_language(tmp_path: Path) -> None:
    record = {"language": "German", "lang": "de", "uid": "1", "text": "Hallo"}
    path = write(tmp_path / "a.jsonl", [record])
    assert read_texts(path) == {"de": [Text("1", "Hallo")]}
    assert read_aligned(path, pivot="de").texts == {"de": ("Hallo",)}


def test_wide_layout_skips_missing_translations(tmp_path: Path) -> None:
    path = write(
        tmp_path / "aligned.parquet",
        [
            {"uid": "1", "source": "s", "split": "train", "n_langs": 2, "en": "one", "id": "satu"},
            {"uid": "2", "source": "s", "split": "train", "n_langs": 1, "en": "two", "id": None},
        ],
    )
    assert read_texts(path) == {"en": [Text("1", "one"), Text("2", "two")], "id": [Text("1", "satu")]}


def test_unknown_language_and_split_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.parquet", LONG)
    with pytest.raises(ValueError, match="no language 'xx'; it has de, en"):
        read_texts(path, languages=["en", "xx"])
    with pytest.raises(ValueError, match="no split 'valid'; it has test, train"):
        read_texts(path, splits=["valid"])
    only = write(tmp_path / "one.parquet", [*LONG[:2], LONG[2]])
    with pytest.raises(ValueError, match="no texts in 'de' for the splits test"):
        read_texts(only, languages=["de"], splits=["test"])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"lang": "en", "text": "a"}\n{"lang": "en", "text"\n', ":2: not valid JSON"),
        ('{"lang": "en", "text": "a"}\n[1]\n', ":2: a JSON object is needed"),
        ('{"lang": "en", "text": 5}\n', "line 1: 'text' holds int, not text"),
        ('{"lang": "en", "text": "  "}\n', "line 1: 'text' is empty"),
        ('{"lang": 3, "text": "a"}\n', "line 1: language is 3"),
        ('{"txt": "a"}\n', "line 1: expected the columns language and text"),
        ('{"lang": "en", "text": "a \\ud800"}\n', "line 1: 'text': character 2 is half a surrogate pair"),
        ("[" * 100_000 + "\n", ":1: brackets are nested too deep"),
        ("", "holds no texts"),
    ],
)
def test_malformed_lines_are_named(content: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=match):
        read_texts(path)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_texts(tmp_path / "absent.parquet")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 this is not parquet")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        read_texts(broken)
    (tmp_path / "texts.csv").write_text("a")
    with pytest.raises(ValueError, match="texts.csv: not a known kind of text file"):
        read_texts(tmp_path / "texts.csv")
    with pytest.raises(ValueError, match="row 1: expected the columns .* got number"):
        read_texts(write(tmp_path / "typed.parquet", [{"number": 1}]))
