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
    if not options.dry_run:
        for analysis in analyses:
            if isinstance(analysis, Steering):
                analysis.read_inputs()  # a mistake in the files is told before a checkpoint is loaded
    failed = commands.run(options)
    if options.dry_run:
        return failed
    table = ResultTable(commands.results_folder(options.source, options.results))
    console = Console()
    for name in names:
        for effect in effects(table.frame([name]), name):
            console.print(console_table(effect))
    return failed


COLUMNS = (
    ("concept_hit", "names the concept [95 %]"),
    ("concept_in_source_language", "in the source language"),
    ("concept_in_other_language", "in another language"),
    ("concept_hit_experts", "its units find it"),
    ("output_in_source_language", "written in the source language"),
    ("bits_per_byte", "bits per byte"),
)
"""Metrics of the closing table. Naming the concept "in" a language means that the text is written in it, too."""


def effects(frame: pd.DataFrame, name: str) -> list[Table]:
    """For every step the overall numbers of each condition."""
    tables = []
    fields = ["layer", "concept", "language", "other_language", "seed"]
    for step, rows in frame.groupby("step", sort=True):
        overall = rows[rows[fields].isna().all(axis=1)].set_index(["kind", "metric"])
        columns = [column for column in COLUMNS if column[0] in overall.index.get_level_values("metric")]
        kinds = overall.index.get_level_values("kind").dropna().unique()
        lines = [
            (str(kind), *(_cell(overall, str(kind), metric, index == 0) for index, (metric, _) in enumerate(columns)))
            for kind in sorted(kinds, key=_order)
        ]
        accuracy = rows[(rows["metric"] == "check_accuracy") & rows["language"].isna()]["value"]
        note = (
            ""
            if accuracy.empty
            else (
                f"Its units tell held-out sentences with the concept from others with a balanced accuracy of "
                f"{accuracy.iloc[0]:.2f} (chance 0.5)."
            )
        )
        tables.append(
            Table(
                title=f"{name}, step {step}: share of texts, effect against controls",
                header=("condition @ K", *(title for _, title in columns)),
                rows=tuple(lines),
                note=note,
            )
        )
    return tables


def _order(kind: str) -> tuple[int, str]:
    """No intervention first, then by K, the experts before their controls."""
    condition, _, k = kind.partition("@")
    return int(k or 0), "" if condition == "experts" else condition


def _cell(overall: pd.DataFrame, kind: str, metric: str, interval: bool) -> str:
    if (kind, metric) not in overall.index:
        return ""
    row = overall.loc[(kind, metric)]
    value = f"{row['value']:.2f}" if metric == "bits_per_byte" else f"{row['value']:.3f}"
    return f"{value} [{row['low']:.3f}, {row['high']:.3f}]" if interval else value
