"""`python -m analysis steer`: a sweep of steering analyses, then effect against control in one table.

The options are those of `python -m analysis run`, so a stopped sweep goes on with what is missing.
Called by `analysis.__main__`.
"""

from __future__ import annotations

import pandas as pd
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from analysis import commands
from analysis.results import ResultTable
from analysis.steering import Steering
from analysis.tables import Table, console_table


def add_arguments(parser: ArgumentParser) -> None:
    commands.add_run_arguments(parser)


def run(options: Namespace) -> int:
    """Measure what is missing, then print the table; raises ValueError if no analysis of the list is a steering one."""
    analyses = commands.read_analyses(options.analyses)
    names = [analysis.name for analysis in analyses if isinstance(analysis, Steering)]
    if not names:
        raise ValueError("steer: the list of analyses has no analysis.steering.Steering; add one, or use `run`")
    failed = commands.run(options)
    if options.dry_run:
        return failed
    table = ResultTable(commands.results_folder(options.source, options.results))
    console = Console()
    for name in names:
        for effect in effects(table.frame([name]), name):
            console.print(console_table(effect))
    return failed


def effects(frame: pd.DataFrame, name: str) -> list[Table]:
    """For every step: concept hits, output in the source language and fluency of each condition."""
    tables = []
    for step, rows in frame.groupby("step", sort=True):
        lines = []
        for kind in rows["kind"].dropna().unique():
            mine = rows[(rows["kind"] == kind) & rows["concept"].isna()]
            overall = mine[mine["language"].isna()]
            hits = overall[overall["metric"] == "concept_hit"]
            own = mine[(mine["metric"] == "output_language") & (mine["language"] == mine["other_language"])]
            bits = mine[mine["metric"] == "bits_per_byte"]
            lines.append(
                (
                    str(kind),
                    _with_interval(hits),
                    "" if own.empty else f"{own['value'].mean():.3f}",
                    "" if bits.empty else f"{bits['value'].mean():.2f}",
                )
            )
        chance = rows[(rows["metric"] == "concept_hit") & rows["chance"].notna()]["chance"]
        note = "" if chance.empty else f"Without intervention {chance.iloc[0]:.3f} of the texts name the concept."
        tables.append(
            Table(
                title=f"{name}, step {step}: effect against controls",
                header=("condition @ K", "names the concept [95 %]", "in the source language", "bits per byte"),
                rows=tuple(lines),
                note=note,
            )
        )
    return tables


def _with_interval(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    row = rows.iloc[0]
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
