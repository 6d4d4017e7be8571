"""Paths beside a configuration; what must not be built is refused in tests/train/test_refusals.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from babelscope.yaml_text import check_arguments, guard_parsers, read_yaml

TEXT = "text: ./a.txt\nmore: [../b.txt, data/c.txt, /d.txt, .hidden, ...]\nlr: 1e-3\nword: a./b\n"


def test_paths_with_a_dot_are_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    read = read_yaml("configs/mine.yaml")
    assert read["text"] == str(tmp_path / "configs" / "a.txt")
    assert read["more"] == [str(tmp_path / "b.txt"), "data/c.txt", "/d.txt", ".hidden", "..."]
    assert read["word"] == "a./b"


def test_a_parser_reads_the_same_and_numbers_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    guard_parsers()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--text", type=str)
    parser.add_argument("--more", type=list[str])
    parser.add_argument("--lr", type=float)
    parser.add_argument("--word", type=str)
    read = parser.parse_args(["--config", "configs/mine.yaml"])
    assert (read.text, read.more[0], read.more[1]) == (
        str(tmp_path / "configs" / "a.txt"),
        str(tmp_path / "b.txt"),
        "data/c.txt",
    )
    assert read.lr == 1e-3


@pytest.mark.parametrize("text", ["languages: [de, no, sv]\n", "a: 1\nweights:\n  no: 1\n", "- on\n"])
def test_the_code_of_norwegian_is_no_truth_value(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(
        ValueError, match=r"mine\.yaml: .*line \d: YAML reads (no|on) as a truth value; write '(no|on)'"
    ):
        read_yaml(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("languages: [de, 'no']\nweights: {'no': 1}\nflags: [true, False]\nbar: no\n")
    read = read_yaml(tmp_path / "mine.yaml")
    assert read == {"languages": ["de", "no"], "weights": {"no": 1}, "flags": [True, False], "bar": False}


def test_the_file_of_a_bomb_in_a_string_is_named(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    (tmp_path / "bad.yaml").write_text("value: '{" + ", ".join(levels) + "}'\n")
    for arguments in (["--config", str(tmp_path / "bad.yaml")], [f"--config={tmp_path / 'bad.yaml'}"]):
        with pytest.raises(ValueError, match=r"bad.yaml: \{a0.*more than 200,000 values"):
            check_arguments(arguments)
