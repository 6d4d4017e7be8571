"""Opening a report: CPU to the first figures, beside a page that draws all of them at once.

    python tests/benchmarks/bench_report.py                             a page of the real size
    python tests/benchmarks/bench_report.py runs/demo/report.html       a page that is there

CPU of every process of a headless Chromium, from its start until the page of 1400 x 900 is drawn. The processes that
draw are no children of the one that is started; whoever adopts orphans (Linux) sees what they used. An empty page costs
a good part of that, which the note says.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from analysis.base import Row  # noqa: E402  (the repository must be importable first)
from analysis.measures.heldout import HeldOutLoss  # noqa: E402
from analysis.measures.language_probe import LanguageProbe  # noqa: E402
from analysis.measures.overlap import ConceptOverlap  # noqa: E402
from analysis.report import browser  # noqa: E402
from analysis.report.report import write_report  # noqa: E402
from analysis.results import ResultTable  # noqa: E402
from analysis.snapshots import SnapshotId  # noqa: E402
from tests.benchmarks.peak import in_child  # noqa: E402
from tests.benchmarks.rows import row  # noqa: E402

LANGUAGES = ("ar", "bn", "ca", "en", "es", "eu", "fr", "hi", "id", "pt", "sw", "ta", "te", "ur", "vi", "zh")
ADOPT_ORPHANS = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2)."""


def write_large(folder: Path, steps: int, layers: int) -> Path:
    """A run with made-up numbers: three analyses by layer, language, pair and concept."""
    table, rng = ResultTable(folder / "results"), np.random.default_rng(0)
    pairs = list(itertools.combinations(LANGUAGES, 2))
    for number in range(steps):
        step = 0 if not number else int(2 ** (number / 2.5)) + number
        here, level = SnapshotId("large", step, 10_000 * step), 0.02 + 0.001 * number
        noise = iter(rng.normal(0, 0.002, 20_000).tolist())
        probe = [Row(metric="accuracy_majority", value=1 / 16)]
        for layer in range(-1, layers):
            for metric in ("accuracy", "accuracy_shared", "information", "selectivity", "accuracy_shuffled"):
                value = 0.5 + next(noise)
                bounds = {"low": value - 0.02, "high": value + 0.02}
                probe.append(Row(metric=metric, value=value, layer=layer, chance=0.1, **bounds))
            probe += [Row(metric="recall", value=0.5 + next(noise), layer=layer, language=code) for code in LANGUAGES]
        overlap = []
        for metric in ("shared", "shared_mismatched", "shared_shuffled", "rank_transfer", "transfer_gain"):
            overlap.append(Row(metric=metric, value=level, low=level - 0.01, high=level + 0.01, chance=0.01))
            overlap += [
                Row(metric=metric, value=level + next(noise), language=a, other_language=b, p=0.5) for a, b in pairs
            ]
            overlap += [Row(metric=metric, value=level + next(noise), concept=f"c{i}") for i in range(128)]
        for metric in ("shared_units", "expert_units"):
            overlap += [Row(metric=metric, value=0.1, layer=layer, chance=0.1) for layer in range(layers)]
        losses = [Row(metric="bits_per_byte", value=8.0 - 0.1 * number + next(noise), language=code, chance=4.0)
                  for code in LANGUAGES]  # fmt: skip
        table.write(here, LanguageProbe(texts="none.parquet"), probe, seconds=1.0)
        table.write(here, ConceptOverlap(concepts="none.parquet"), overlap, seconds=1.0)
        table.write(here, HeldOutLoss(texts="none.parquet"), losses, seconds=1.0)
    return folder


def seconds_to_open(page: Path, view: str = "") -> float:
    """CPU seconds; `view` is the page's `#all`, or nothing. In a child of its own, which waits for whatever the browser
    leaves."""
    return in_child(lambda: _open(page, view))


def _open(page: Path, view: str) -> float:
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        command = [str(browser.find_browser()), *browser.FLAGS, f"--user-data-dir={folder}", "--window-size=1400,900"]
        command += ["--virtual-time-budget=3000", "--dump-dom", f"{page.resolve().as_uri()}{view}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        try:
            while True:
                os.wait()
        except ChildProcessError:  # none is left
            pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(quick: bool = False, page: Path | None = None) -> list[dict[str, Any]]:
    """Rows of the benchmark table, none without a browser."""
    if browser.find_browser() is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        rows, steps, name = [], 12 if quick else 45, str(page)
        if page is None:
            name = f"{steps} steps x 24 layers x {len(LANGUAGES)} languages"
            made = write_large(Path(folder) / "run", steps, layers=24)
            started = time.process_time()
            page = write_report([made])
            rows.append(row(f"write, {name}", None, time.process_time() - started, "s", "the first page of a process"))
        empty = Path(folder) / "empty.html"
        empty.write_text("<!doctype html>", encoding="utf-8")
        rounds = [
            (seconds_to_open(page, "#all"), seconds_to_open(page), seconds_to_open(empty))
            for _ in range(1 if quick else 3)
        ]
        every, seen, nothing = (statistics.median(column) for column in zip(*rounds, strict=True))
        note = f"first figures against all; {nothing:.2f} s for an empty page; {page.stat().st_size / 1e6:.1f} MB"
        return [*rows, row(f"open, {name}", every, seen, "s", note)]


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU to open a report")
    parser.add_argument("page", nargs="?", type=Path, help="a report that is there; one of the real size is made else")
    parser.add_argument("--quick", action="store_true", help="one round, fewer steps")
    options = parser.parse_args()
    for one in run(options.quick, options.page):
        baseline = "" if one["baseline"] is None else f"{one['baseline']:.2f} -> "
        print(f"{one['name']}: {baseline}{one['ours']:.2f} s  {one['note']}")


if __name__ == "__main__":
    main()
