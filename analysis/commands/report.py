"""The command `report`: one run, or several side by side, as one HTML file.

For a single run the closing tables are printed too: loss, probe and overlap beside their baselines, cost, and where
everything lies.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder (runs/demo) or result folder")
    parser.add_argument("--out", type=Path | None, default=None, help="HTML file; null is report.html in the first run")


def run(options: Namespace) -> int:
    """Write the report; for a single run print its closing tables too."""
    from rich.console import Console

    from analysis.report.closing import closing_tables
    from analysis.report.report import verdicts, write_report
    from analysis.report.run import read_run
    from analysis.report.tables import console_table

    path = write_report(options.runs, options.out)
    console = Console(soft_wrap=True)
    if len(options.runs) == 1:
        record = read_run(options.runs[0])
        for sentence in verdicts(record):
            console.print(sentence, markup=False)
        for table in closing_tables(record):
            console.print(console_table(table))
        console.print(f"results:  {record.table.root}")
        for session in sorted((record.folder / "wandb").glob("*run-*")):
            console.print(f"W&B run:  {session}")
    console.print(f"report:   {path}")
    return 0
