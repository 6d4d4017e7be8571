"""The commands on text: what they write to stdout, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from train import commands
from train.__main__ import make_parser
from train.data.streams import PreparedText
from train.data.tokenizer import load_tokenizer, save_tokenizer

DATA = Path(__file__).parents[2] / "data"


def test_command_trains_saves_and_prints_fertility(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("tokenizer")
    text = str(DATA / "embedded_udhr18.parquet")
    arguments = ["--text", text, "--languages", "en", "ja", "--vocab_size", "500", "--output", str(tmp_path / "tok")]
    commands.run_tokenizer(parser.parse_args(arguments))
    assert len(load_tokenizer(tmp_path / "tok")) == 500
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["en", "ja"]
    commands.run_tokenizer(parser.parse_args(["--text", text, "--measure", str(tmp_path / "tok")]))
    assert len(capsys.readouterr().out.splitlines()) == 19
    with pytest.raises(ValueError, match="--config"):
        commands.run_tokenizer(parser.parse_args([]))


@pytest.mark.parametrize("option", [["--vocab_size", "300"], ["--output", "x"], ["--alpha", "1"], ["--seed", "0"]])
def test_measuring_a_tokenizer_refuses_what_is_of_training(option: list[str]) -> None:
    given = ["--text", str(DATA / "embedded_udhr18.parquet"), "--measure", "nowhere", *option]
    with pytest.raises(ValueError, match=f"--measure nowhere trains nothing, so {option[0]} says nothing"):
        commands.run_tokenizer(make_parser("tokenizer").parse_args(given))


@pytest.mark.parametrize("name", ["tokenizer", "audit"])
def test_text_from_two_places_is_refused(name: str) -> None:
    given = make_parser(name).parse_args(["--config", "a.yaml", "--text", "b.jsonl"])
    with pytest.raises(ValueError, match="--config and --text both name the text"):
        getattr(commands, f"run_{name}")(given)


def test_the_tokenizer_of_a_configuration_is_the_one_that_fit_would_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float, int]] = []

    def note(folder: str, texts: object, vocab_size: int, *, alpha: float, seed: int) -> bool:
        asked.append((vocab_size, alpha, seed))
        return False

    monkeypatch.setattr("train.data.tokenizer.ensure_tokenizer", note)
    section = {"sources": [], "tokenizer": str(tmp_path / "tok"), "vocab_size": 300, "seed": 7}
    (tmp_path / "config.yaml").write_text(json.dumps({"data": section}))
    for more in ([], ["--seed", "0", "--alpha", "1", "--vocab_size", "400"]):
        given = make_parser("tokenizer").parse_args(["--config", str(tmp_path / "config.yaml"), *more])
        with pytest.raises(ValueError, match="something is there already"):
            commands.run_tokenizer(given)
    assert asked == [(300, 0.3, 7), (400, 1.0, 0)]


def test_fertility_is_measured_where_there_is_held_out_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"lang": "en", "split": "train"}, {"lang": "en", "split": "valid"}, {"lang": "de", "split": "train"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row | {"text": "old house " * 9}) + "\n" for row in rows))
    given = ["--text", str(tmp_path / "a.jsonl"), "--vocab_size", "262", "--output", str(tmp_path / "tok")]
    commands.run_tokenizer(make_parser("tokenizer").parse_args(given))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["en", "de"]
    assert "no text of the split valid" in lines[-1]


def test_a_taken_folder_is_refused_before_any_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").touch()
    parser = make_parser("tokenizer")
    arguments = ["--text", f"en={tmp_path / 'not_there.txt'}", "--vocab_size", "300", "--output", str(tmp_path / "tok")]
    with pytest.raises(ValueError, match=r"tok: something is there already; look at it with --measure"):
        commands.run_tokenizer(parser.parse_args(arguments))
    with pytest.raises(ValueError, match="alpha must lie"):
        commands.run_tokenizer(parser.parse_args([*arguments, "--alpha", "-3"]))


def test_command_prepares_from_a_config(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(byte_tokenizer, tmp_path / "tok")
    records = [
        {"lang": language, "text": f"{language} {i} text", "split": "train"}
        for language in ("de", "en", "zh")
        for i in range(30)
    ]
    pattern = str(tmp_path / "text.jsonl")
    Path(pattern).write_text("".join(json.dumps(record) + "\n" for record in records))
    config = tmp_path / "config.yaml"
    section = {
        "sources": [{"class_path": "train.data.sources.LocalText", "init_args": {"path": pattern}}],
        "tokenizer": str(tmp_path / "tok"),
        "cache": str(tmp_path / "cache"),
        "block_size": 16,
    }
    config.write_text(json.dumps({"data": section, "model": {"d_model": 1}}))  # JSON is YAML
    parser = make_parser("prepare")
    commands.run_prepare(parser.parse_args(["--config", str(config), "--languages", "de", "en", "--verify"]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * 3 + 1
    assert PreparedText(lines[-1]).languages == ("de", "en")
    for text, message in (
        ("data: {sources: [], tokenizr: x}", "tokenizr"),
        ("data: [", "not valid YAML"),
        ("model: {}", "no `data:` section"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            commands.run_prepare(parser.parse_args(["--config", str(config)]))
        assert "\n" not in str(caught.value)


def test_command_audits_held_out_splits_or_a_given_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied, fresh = (" ".join(f"{word}{i}" for i in range(30)) for word in ("old", "new"))
    records = [
        {"lang": "en", "text": copied, "split": "train"},
        {"lang": "en", "text": copied, "split": "valid"},
        {"lang": "en", "text": fresh, "split": "test"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "eval.jsonl").write_text(json.dumps({"lang": "en", "text": fresh}) + "\n")
    parser = make_parser("audit")
    commands.run_audit(parser.parse_args(["--text", str(tmp_path / "a.jsonl"), "--examples", "1"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["en", "2", "1", "50.00%"]
    assert lines[2] == f"en: {copied}"
    commands.run_audit(
        parser.parse_args(["--text", str(tmp_path / "a.jsonl"), "--evaluation", str(tmp_path / "eval.jsonl")])
    )
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["en", "1", "0", "0.00%"]
    (tmp_path / "eval.jsonl").write_text(json.dumps({"lang": "sw", "text": fresh}) + "\n")
    with pytest.raises(ValueError, match=r"--evaluation .*eval\.jsonl: has none of en"):
        commands.run_audit(
            parser.parse_args(["--text", str(tmp_path / "a.jsonl"), "--evaluation", str(tmp_path / "eval.jsonl")])
        )
    for option, value in (("--examples", "-1"), ("--n", "0")):
        arguments = ["--text", str(tmp_path / "not_there.jsonl"), option, value]
        with pytest.raises(ValueError, match=f"must be at least .*, got {value}"):
            commands.run_audit(parser.parse_args(arguments))


def test_the_audit_looks_at_what_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [" ".join(f"word{place}of{i}" for place in range(30)) for i in range(6)]
    rows = [{"lang": "en", "text": text, "uid": str(i), "split": "train"} for i, text in enumerate(texts)]
    near = {"lang": "en", "text": f"New start {texts[0][20:]}", "uid": "near", "split": "train"}
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, near]))
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    section = {
        "sources": [
            {"class_path": "train.data.sources.LocalText", "init_args": {"path": str(tmp_path / "text.jsonl")}}
        ],
        "tokenizer": "none",
    }
    parser = make_parser("audit")
    found = {}
    for name, options in (
        ("as it is", {}),
        ("exact", {"exclude": [str(tmp_path / "eval.jsonl")], "exclude_ngrams": 0}),
        ("near", {"exclude": [str(tmp_path / "eval.jsonl")]}),
    ):
        (tmp_path / "config.yaml").write_text(json.dumps({"data": section | options}))
        arguments = ["--config", str(tmp_path / "config.yaml"), "--evaluation", str(tmp_path / "eval.jsonl")]
        commands.run_audit(parser.parse_args(arguments))
        found[name] = capsys.readouterr().out.splitlines()[1].split()[:3]
    assert found == {"as it is": ["en", "2", "2"], "exact": ["en", "2", "1"], "near": ["en", "2", "0"]}
