"""The command `report`: one run, or several side by side, as one HTML file. Called by `analysis.__main__`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder (runs/demo) or result folder")
    parser.add_argument("--out", type=Path, default=None, help="HTML file (default: report.html in the first run)")


def run(options: argparse.Namespace) -> int:
    sys.stdout.write(f"report: {write_report(options.runs, options.out)}\n")
    return 0
