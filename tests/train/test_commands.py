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
