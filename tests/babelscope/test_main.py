"""The console script: the same programs from any folder, whatever lies there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from babelscope.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start it as the installed script does: with the script's folder, not the working one, first on the path."""
    start = "import sys; from babelscope.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", start, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_train_py_and_an_analysis_folder_of_ones_own_hide_nothing(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')\n")
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").write_text("raise SystemExit('the wrong analysis')\n")
    for part in ("train", "analysis"):
        done = script(tmp_path, part, "--help")
        assert done.returncode == 0, done.stderr
        assert f"python -m {part} COMMAND" in done.stdout


def test_a_measure_of_ones_own_is_found_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Wrong: pass\n")
    (tmp_path / "list.yaml").write_text("analyses:\n- class_path: mine.Wrong\n")
    run = ["--source", "RunFolder", "--source.path", "none", "--analyses", "list.yaml"]
    done = script(tmp_path, "analysis", "run", *run)
    assert done.returncode == 2
    assert "mine.Wrong" in done.stderr  # found, and refused for what it is
    assert "No module named" not in done.stderr


def test_parts_that_do_not_exist_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "choose train or analysis" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["-h"]) == 0
    assert "usage: babelscope" in capsys.readouterr().out
