"""A kept page is that of the parser, and no older than what it is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from babelscope.help_page import kept_page


class Parser:
    """Prints its page and leaves, as parsers do; counts how often it had to."""

    def __init__(self) -> None:
        self.page, self.asked = "usage: fit\n", 0

    def __call__(self) -> None:
        self.asked += 1
        sys.stdout.write(self.page)
        raise SystemExit(0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_a_page_is_made_once_a_command() -> None:
    parser = Parser()
    assert [kept_page("fit", parser) for _ in range(3)] == [parser.page] * 3
    assert parser.asked == 1
    kept_page("validate", parser)
    assert parser.asked == 2


@pytest.mark.parametrize("changed", ["width", "source", "package"])
def test_it_is_made_anew_when_something_changed_that_it_depends_on(
    changed: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser, house = Parser(), home / "house"
    (house / "train").mkdir(parents=True)
    (house / "train" / "cli.py").write_text("a = 1")
    monkeypatch.setattr("babelscope.help_page.ROOT", house)
    kept_page("fit", parser)
    parser.page = "usage: another\n"
    if changed == "width":
        monkeypatch.setenv("COLUMNS", "120")
    elif changed == "source":
        (house / "train" / "cli.py").write_text("a = 22")
    else:
        monkeypatch.setattr("babelscope.help_page.distributions", list)
    assert kept_page("fit", parser) == parser.page


@pytest.mark.parametrize("content", ["", "[]", '{"page": 1}', "\x00"])
def test_what_is_no_page_of_ours_is_made_anew(content: str, home: Path) -> None:
    parser = Parser()
    (home / "babelscope").mkdir()
    (home / "babelscope" / "help_fit.json").write_text(content)
    assert kept_page("fit", parser) == parser.page
    assert kept_page("fit", parser) == parser.page
    assert parser.asked == 1


def test_a_home_that_cannot_be_written_does_not_matter(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    assert kept_page("fit", Parser()) == "usage: fit\n"


def test_the_second_help_of_fit_is_the_first_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; from train.__main__ import main\n"
        "main(['fit', '--help'])\n"
        "sys.stderr.write(str('torch' in sys.modules))"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in range(2)
    )
    assert first.stdout == second.stdout
    assert first.stdout.startswith("usage: python -m train fit ")
    assert (first.stderr.endswith("True"), second.stderr) == (True, "False")
