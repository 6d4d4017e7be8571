"""The command `report`: one run, or several side by side, as one HTML file.

For a single run the verdicts and the closing tables are printed too: loss, probe and overlap beside their baselines,
cost, and where everything lies.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

if TYPE_CHECKING:
    from rich.console import Console

WATCH_SECONDS = 20.0


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder (runs/demo) or result folder")
    parser.add_argument(
        "--out",
        type=Path | None,
        default=None,
        help="file; null is report.html (of several runs comparison.html) in the first run",
    )
    parser.add_argument(
        "--steps",
        nargs=2,
        type=int,
        metavar="STEP",
        help="two steps of one run beside each other, on a page of their own",
    )
    parser.add_argument(
        "--format", type=Literal["html", "pdf", "png"], default="html", help="pdf and png beside the page, by Chromium"
    )
    parser.add_argument(
        "--watch", action=ActionYesNo, default=False, help="go on and renew the page when results are added"
    )
    parser.add_argument(
        "--capacity", action=ActionYesNo, default=False, help="compare finished runs of several widths and seeds"
    )


def run(options: Namespace) -> int:
    """Write the report; for a single run print what it amounts to."""
    from analysis.report.tables import open_console

    console = open_console()
    path = _write(options, console)
    if len(options.runs) == 1 and not options.capacity and not options.steps:
        _print_closing(options.runs[0], console)
    console.print(f"report:   {path}", markup=False)
    seen = _newest(options.runs)
    while options.watch:
        time.sleep(WATCH_SECONDS)
        if (newest := _newest(options.runs)) != seen:
            seen = newest
            console.print(f"renewed:  {_write(options, console)}", markup=False)
    return 0


def _targets(options: Namespace) -> tuple[Path | None, str]:
    """The page to write, and the format that is asked for: by `--format`, or by the name of `--out`.

    Raises:
        ValueError: options that contradict each other.
        FileNotFoundError: a format that needs a browser, of which none is installed.
    """
    from analysis.report.browser import find_browser

    out, kind = options.out, options.format
    if options.capacity and options.steps:
        raise ValueError("--steps compares two steps of one run; leave out --capacity")
    if out is not None and (named := out.suffix[1:]) in ("pdf", "png"):
        if kind not in ("html", named):
            raise ValueError(f"--out {out} --format {kind}: the name says {named}; leave out one of the two")
        out, kind = out.with_suffix(".html"), named
    if kind != "html" and find_browser() is None:
        raise FileNotFoundError(
            f"--format {kind} needs Chromium or Chrome, of which none is installed; leave it out for html"
        )
    return out, kind


def _write(options: Namespace, console: Console) -> Path:
    from analysis.report.browser import render
    from analysis.report.capacity.page import write_capacity_report
    from analysis.report.report import write_report
    from analysis.report.tables import console_table

    out, kind = _targets(options)
    if options.capacity:
        path = out or options.runs[0].parent / "capacity.html"
        said, sizes, _ = write_capacity_report(options.runs, path)
        console.print(console_table(sizes))
        console.print(said, markup=False)
    else:
        path = write_report(options.runs, out, tuple(options.steps) if options.steps else None)
    return path if kind == "html" else render(path, path.with_suffix(f".{kind}"))


def _print_closing(folder: Path, console: Console) -> None:
    from analysis.report.closing import closing_tables
    from analysis.report.report import verdicts
    from analysis.report.run import read_run
    from analysis.report.tables import console_table

    record = read_run(folder)
    for sentence in verdicts(record):
        console.print(sentence, markup=False)
    for table in closing_tables(record):
        console.print(console_table(table))
    console.print(f"results:  {record.table.root}", markup=False)
    for session in sorted((record.folder / "wandb").glob("*run-*")):
        console.print(f"W&B run:  {session}", markup=False)


def _newest(runs: list[Path]) -> tuple[int, int]:
    """How many files of results and records there are, and when the newest was written."""
    files = [path for run in runs for path in (*run.rglob("step_*/*.parquet"), *run.glob("metrics.jsonl"))]
    return len(files), max((path.stat().st_mtime_ns for path in files), default=0)
