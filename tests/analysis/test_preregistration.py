"""A report of a run with a plan: only what was fixed before, measured as it was fixed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.base import Row
from analysis.measures import load_analyses
from analysis.report.run import read_run
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId

LIST = """\
steps: [0, 8]
analyses:
  - class_path: HeldOutLoss
    init_args: {texts: texts.jsonl, max_texts: 7}
  - class_path: LanguageProbe
    init_args: {texts: texts.jsonl}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose plan was written before step 8 was measured by the first of its two analyses."""
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text('{"language": "en", "text": "a", "uid": "1"}\n')
    Path("base.yaml").write_text("model: {}\n")
    Path("analyses.yaml").write_text(LIST)
    folder = tmp_path / "run"
    folder.mkdir()
    lock(folder)
    measure(folder, 8)
    return folder


def lock(folder: Path) -> None:
    lines = [
        f"{hashlib.sha256(Path(name).read_bytes()).hexdigest()}  {name}\n" for name in ("base.yaml", "analyses.yaml")
    ]
    (folder / "plan.sha256").write_text("".join(lines))


def measure(folder: Path, step: int, path: str = "analyses.yaml", number: int = 0) -> None:
    analysis = load_analyses(path)[number]
    ResultTable(folder / "results").write(
        SnapshotId("run", step), analysis, [Row(metric="bits_per_byte", value=1.0)], 1.0
    )


def test_what_was_planned_is_read_and_what_is_left_is_named(run: Path) -> None:
    said = read_run(run).registered
    assert "plan.sha256" in said
    assert "Not measured yet: language_probe" in said
    measure(run, 8, number=1)
    assert "Not measured" not in read_run(run).registered
    os.remove("texts.jsonl")
    read_run(run)
    (run / "plan.sha256").unlink()
    assert read_run(run).registered == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("max_texts: 7", "max_texts: 8"), "held_out at step 8 .*max_texts is 8, .* it is 7"),
        (
            lambda text: text.replace("HeldOutLoss", "Lape").replace(", max_texts: 7", ""),
            "lape at step 8 is not in the plan",
        ),
    ],
)
def test_other_analyses_are_refused(run: Path, change, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.yaml").write_text(change(LIST))
    measure(run, 8, "other.yaml")
    with pytest.raises(ValueError, match=message):
        read_run(run)
    assert main(["report", str(run)]) == 2
    assert "step 8" in capsys.readouterr().err
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("steps", ["[0, 8]", "0,8", "0:8", "8"])
def test_steps_count_too_however_the_list_writes_them(run: Path, steps: str) -> None:
    Path("analyses.yaml").write_text(LIST.replace("[0, 8]", steps))
    lock(run)
    read_run(run)
    measure(run, 16)
    with pytest.raises(ValueError, match="at step 16 was not measured as planned: analyses.yaml has steps [0,: ]*8"):
        read_run(run)


def test_a_plan_may_leave_the_last_step_open(run: Path) -> None:
    Path("analyses.yaml").write_text(LIST.replace("[0, 8]", "0,last"))
    lock(run)
    assert read_run(run).registered


def test_texts_count_too(run: Path) -> None:
    Path("texts.jsonl").write_text('{"language": "en", "text": "b", "uid": "1"}\n')
    with pytest.raises(ValueError, match="texts is sha256"):
        read_run(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "analyses.yaml",
            LIST + "# changed\n",
            "analyses.yaml is not the file that was planned; restore it as committed, or check out",
        ),
        ("analyses.yaml", None, "analyses.yaml is not there"),
        ("run/plan.sha256", "nonsense\n", "plan.sha256:1: not a line of sha256sum"),
        ("run/plan.sha256", "", "no list of analyses"),
    ],
)
def test_a_plan_that_was_changed_is_refused(run: Path, name: str, content: str | None, message: str) -> None:
    Path(name).unlink() if content is None else Path(name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_run(run)
