"""The script for the GPU does its work on the CPU too: no part of it meets a GPU for the first time with a mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import gpu_day

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "benchmarks" / "gpu_day.sh"


@pytest.mark.parametrize("part", ["machine", "loss", "model", "analyses"])
def test_a_part_passes_against_itself(part: str) -> None:
    found = list(gpu_day.answers(part, "cpu"))
    assert found
    assert {answer.verdict for answer in found} <= {"PASS", "FIGURE"}, found


def test_what_goes_wrong_is_the_last_line_and_what_is_not_there_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def part(error: Exception):  # type: ignore[no-untyped-def]
        def check(device: str):  # type: ignore[no-untyped-def]
            yield gpu_day.within("norm", 2.0, 1.0)
            raise error

        return check

    for error, verdict in ((ValueError("broken\nhere"), "FAIL"), (ImportError("no numba"), "SKIP")):
        monkeypatch.setitem(gpu_day.PARTS, "loss", part(error))
        first, last = gpu_day.answers("loss", "cpu")
        assert str(first) == "FAIL   loss: norm: 2, at most 1"
        assert last.verdict == verdict
    assert gpu_day.main(["--cpu", "loss"]) == 1


def test_the_parts_and_their_limits_fit_into_25_minutes() -> None:
    limits = dict(re.findall(r"(\w+):(\d+)", SCRIPT.read_text().partition('LIMITS="')[2].partition('"')[0]))
    assert list(limits) == list(gpu_day.PARTS)
    assert sum(map(int, limits.values())) <= 25 * 60


@pytest.mark.slow
def test_the_whole_day_in_a_dry_run() -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run([str(SCRIPT), "--cpu"], cwd=ROOT, env=environment, capture_output=True, text=True)
    verdicts = [line.split()[0] for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(verdicts) == {"PASS", "FIGURE"}
    assert {re.split(r"[ :]+", line)[1] for line in done.stdout.splitlines()} == set(gpu_day.PARTS)
