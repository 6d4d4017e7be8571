"""Own text, from nothing to a report: `train init` writes what `train fit` runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analysis.measures import load_analyses
from train.__main__ import main
from train.cli import ParsedRun

WORDS = {
    "en": {"water": "water", "fire": "fire", "filler": "the old man walks far over green hills today"},
    "de": {"water": "wasser", "fire": "feuer", "filler": "der alte mann geht weit ueber gruene huegel heute"},
    "es": {"water": "agua", "fire": "fuego", "filler": "el viejo hombre anda lejos sobre cerros verdes hoy"},
}
"""Three languages that differ in every word."""


def sentence(language: str, concept: str, generator: random.Random) -> str:
    words = generator.sample(WORDS[language]["filler"].split(), 6)
    return " ".join([*words, *([WORDS[language][concept]] if concept else [])])


def sentences(language: str, count: int, seed: int) -> list[str]:
    generator = random.Random(f"{language}{seed}")
    return [f"{sentence(language, ('water', 'fire', '', '', '', '', '')[i % 7], generator)} {i}" for i in range(count)]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Text of three languages, wide translations without keys, and concept lists."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    (tmp_path / "text").mkdir()
    for language in WORDS:
        (tmp_path / "text" / f"{language}.txt").write_text("\n".join(sentences(language, 700, 1)), encoding="utf-8")
        lines = [f"{concept}\tword\t{WORDS[language][concept]}" for concept in ("water", "fire")]
        (tmp_path / f"{language}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    wide = {language: sentences(language, 420, 2) for language in WORDS}
    pd.DataFrame(wide).to_parquet(tmp_path / "parallel.parquet")
    return tmp_path


TEXT = ("--text", *(f"{language}=text/{language}.txt" for language in WORDS))


def shrink(path: Path) -> None:
    """A model and measures small enough for a test; everything else stays as it was written."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["model"] |= {"d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 32}
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False}
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"].endswith("AnalysisCallback"):
            callback["init_args"] |= {"null_networks": 0, "schedule": {"base": None}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    listed = path.with_suffix("") / "analyses.yaml"
    entries = yaml.safe_load(listed.read_text(encoding="utf-8"))
    small = {
        "LanguageProbe": {"tokens_per_language": 100, "test_tokens_per_language": 50, "seeds": [0]},
        "ProbeSuite": {"tokens_per_language": 100, "test_tokens_per_language": 50, "seeds": [0]},
        "ConceptOverlap": {"bootstrap": 50},
        "Compression": {"tokens_per_language": 100},
        "Lape": {"tokens_per_language": 200, "shuffles": 2},
        "Alignment": {"permutations": 5},
    }
    for entry in entries["analyses"]:
        entry["init_args"] |= small.get(entry["class_path"], {})
    listed.write_text(yaml.safe_dump(entries), encoding="utf-8")


def test_two_commands_lead_from_three_languages_of_text_to_a_report(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--parallel", "parallel.parquet", "--concepts", "en.tsv", "--steps", "4", "--out", "configs/mine.yaml"]
    assert main(["init", *TEXT, *given]) == 0
    said = capsys.readouterr().out
    assert "2 concepts" in said
    assert "python -m train fit --config configs/mine.yaml" in said
    shrink(own / "configs" / "mine.yaml")
    elsewhere = own / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # paths are those of the configuration
    assert main(["fit", "--config", "../configs/mine.yaml"]) == 0, capsys.readouterr().err
    run = own / "runs" / "mine"
    page = (run / "report.html").read_text(encoding="utf-8")
    measured = {path.stem for path in (run / "results" / "step_00000004").glob("*.parquet")}
    assert {"held_out", "language_probe", "overlap", "alignment", "compression", "probe_suite"} <= measured
    assert "Language" in page
    assert not list(elsewhere.iterdir())
    stored = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert stored["model"]["vocab_size"] == stored["data"]["vocab_size"]
    assert main(["fit", "--config", str(run / "config.yaml")]) == 0  # goes on, also from the stored configuration


def test_what_is_held_out_for_the_analyses_is_not_trained_on(own: Path) -> None:
    assert main(["init", *TEXT, "--out", "mine.yaml"]) == 0
    run = ParsedRun(["fit", "--config", "mine.yaml"]).run
    from train.data.documents import stream_documents
    from train.data.sources import LocalText

    sources = [LocalText(**entry.init_args.as_dict()) for entry in run.data.sources]
    trained = {(d.language, d.text) for d in stream_documents(sources, [*WORDS]) if d.split == "train"}
    table = pd.read_parquet("mine/held_out.parquet")
    assert {*table["split"]} == {"train", "valid", "test"}
    held_out = {(row.lang, row.text) for row in table.itertuples() if row.split != "train"}
    assert len(held_out) > 200
    assert not held_out & trained


def test_text_alone_is_measured_as_far_as_it_goes(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", *TEXT, "--out", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert "alignment of translations: it needs --parallel" in said
    names = [type(one).__name__ for one in load_analyses("mine/analyses.yaml")]
    assert names == ["HeldOutLoss", "LanguageProbe", "Compression", "Lape", "ProbeSuite"]
    assert main(["init", "--text", "en=text/en.txt", "--out", "one.yaml"]) == 0
    assert [type(one).__name__ for one in load_analyses("one/analyses.yaml")] == ["HeldOutLoss"]


def test_lists_of_each_language_need_no_translations(own: Path) -> None:
    lists = [f"{language}={language}.tsv" for language in WORDS]
    assert main(["init", *TEXT, "--concepts", *lists, "--out", "mine.yaml"]) == 0
    (overlap,) = [one for one in load_analyses("mine/analyses.yaml") if type(one).__name__ == "ConceptOverlap"]
    found = overlap.concept_set()  # type: ignore[attr-defined]
    assert found.languages == ("de", "en", "es")
    assert found.concepts == ("water", "fire")
    for language, pool in found.pools.items():
        positives = [pool.texts[place] for place in pool.positives["water"].tolist()]
        assert len(positives) >= 30
        assert all(WORDS[language]["water"] in text for text in positives)
        assert not any(WORDS[language]["water"] in pool.texts[place] for place in pool.negatives["water"].tolist())
    assert str(own / "mine" / "concepts.parquet") in ParsedRun(["fit", "--config", "mine.yaml"]).run.data.exclude


def test_keyed_text_is_its_own_parallel_text(own: Path) -> None:
    rows = [
        {"lang": language, "uid": number, "text": text}
        for language in WORDS
        for number, text in enumerate(sentences(language, 700, 3))
    ]
    (own / "long.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["init", "--text", "long.jsonl", "--concepts", "de=de.tsv", "--out", "mine.yaml"]) == 0
    names = [type(one).__name__ for one in load_analyses("mine/analyses.yaml")]
    assert {"Alignment", "ConceptOverlap"} <= {*names}
    assert main(["prepare", "--config", "mine.yaml"]) == 0  # with a vocabulary for the text that labelling has left
    (manifest,) = (own / "runs" / "cache").glob("*/manifest.json")
    for splits in json.loads(manifest.read_text(encoding="utf-8"))["languages"].values():
        assert 0 < splits["train"]["excluded"] < splits["train"]["documents"], "most text is left to train on"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "en=none.txt", "--out", "a.yaml"], "none.txt: no such file"),
        (["--text", "English=text/en.txt", "--out", "a.yaml"], "'English' is not a language code"),
        (["--text", "en=text/en.txt", "en=text/de.txt", "--out", "a.yaml"], "names en twice"),
        ([*TEXT, "--out", "a.json"], "a.json: a configuration is a .yaml file"),
        ([*TEXT, "--out", "text.yaml"], "text is there already"),
        ([*TEXT, "--concepts", "en.tsv", "--out", "a.yaml"], "one list serves translated text alone"),
        ([*TEXT, "--concepts", "en.tsv", "de.tsv", "--out", "a.yaml"], "or LANG=FILE once for each language"),
        ([*TEXT, "--concepts", "en=en.tsv", "en=de.tsv", "--out", "a.yaml"], "or LANG=FILE once for each language"),
        ([*TEXT, "--concepts", "en=en.tsv", "fr=de.tsv", "--out", "a.yaml"], "a list for fr, but text in de, en, es"),
        ([*TEXT, "--parallel", "fr.jsonl", "--out", "a.yaml"], "has none of de, en, es"),
        ([*TEXT, "--parallel", "parallel.parquet", "--concepts", "fr.tsv", "--out", "a.yaml"], "no such concept list"),
        (["--text", "en=short.txt", "--out", "a.yaml"], "en has 3 texts; at least 20"),
        (["--text", "parallel.parquet", "--parallel", "parallel.parquet", "--out", "a.yaml"], "to train on already"),
        ([*TEXT, "--steps", "1", "--out", "a.yaml"], "--steps 1"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    own: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "fr.jsonl").write_text('{"lang": "fr", "uid": 1, "text": "le vieux"}\n')
    (own / "short.txt").write_text("one\ntwo\nthree\n")
    before = sorted(own.rglob("*"))
    assert main(["init", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
    assert sorted(own.rglob("*")) == before
