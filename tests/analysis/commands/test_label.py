"""`python -m analysis label`: the concept file and its lexicon from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analysis.__main__ import main
from analysis.concepts.file import lexicon_path
from analysis.concepts.labelling import label_concepts
from analysis.concepts.lexicon import read_lexicon
from analysis.concepts.matching import LabellingSettings


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """300 sentences in English, German and Japanese; every third speaks of water."""
    fillers = {"en": "the old man walks far", "de": "der alte mann geht weit", "ja": "古い男歩く遠い道"}
    water = {"en": "water", "de": "wasser", "ja": "水"}
    rows = []
    for number in range(300):
        for language, filler in fillers.items():
            text = f"{filler} {water[language]} {number}" if number % 3 == 0 else f"{filler} {number}"
            rows.append({"lang": language, "uid": f"s{number:04d}", "text": text})
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "binary.tsv").write_bytes(bytes(range(256)))
    (tmp_path / "list.tsv").write_text("water\tword\twater waters\nfire\tword\tfire fires\n", encoding="utf-8")
    return tmp_path


def test_the_list_that_ships_is_found_from_any_folder(
    planted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(planted)
    assert main(["label", "--texts", "texts.jsonl", "--out", "own.parquet", "--languages", "de", "ja"]) == 0
    assert "water" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["concepts.parquet", "concepts.jsonl"])
def test_the_command_writes_the_concept_file_and_its_lexicon(
    name: str, planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = planted / "new" / name
    arguments = ["--texts", str(planted / "texts.jsonl"), "--list", str(planted / "list.tsv"), "--out", str(out)]
    arguments += ["--concepts", "water", "--languages", "de", "ja", "--cap", "30", "--negatives", "2", "--complete"]
    assert main(["label", *arguments]) == 0
    assert "1 concepts, 270 labelled rows" in capsys.readouterr().out
    settings = LabellingSettings(concepts=("water",), languages=("de", "ja"), cap=30, negatives=2, complete=True)
    expected = label_concepts(planted / "texts.jsonl", planted / "list.tsv", settings)
    if out.suffix == ".parquet":
        assert pq.read_table(out).equals(expected.table)
    else:
        assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == expected.table.to_pylist()
    lexicon = read_lexicon(lexicon_path(out))
    assert lexicon == {"water": {language: tuple(e) for language, e in expected.lexicon["water"].items()}}
    assert {path.name for path in out.parent.iterdir()} == {name, f"{name}.lexicon.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "c.csv"], "c.csv: unknown format '.csv'"),
        (["--out", "list.tsv/c.parquet"], "list.tsv is a file, so nothing can be written below it"),
        (["--out", "c.parquet", "--list", "binary.tsv"], "binary.tsv: not text in UTF-8"),
        (["--out", "c.parquet", "--cap", "0"], "cap must be at least 1, got 0"),
        (["--out", "c.parquet", "--kinds", "verb"], "unknown kind of concept 'verb'"),
        (["--out", "c.parquet", "--concepts", "love"], "unknown concept 'love'"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    arguments: list[str],
    message: str,
    planted: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(planted)
    assert main(["label", "--texts", "none.parquet", "--list", "list.tsv", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not list(planted.glob("c.*"))
