"""Two steps of one run beside each other: what changed in between, paired where the results allow it.

Overall numbers of both with their difference; the interval of a difference is paired over concepts (where an analysis
has a row for each) or over sentences (the dip of the probe), since both steps were measured on the same ones. Then
curves over layers, and pairs of languages as a difference.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import plotly.graph_objects as go

from analysis.probes.dip import DipCounts, dip_change
from analysis.report import figures as draw
from analysis.report.explanations import explain, in_words
from analysis.report.figures import select
from analysis.report.page import Captioned, Card, Page
from analysis.report.pair_figures import is_directed, pair_matrix
from analysis.report.run import RunRecord
from analysis.report.style import add_line, base_figure
from analysis.report.tables import Table
from analysis.statistics import paired_contrast

FEWEST_CONCEPTS = 3


def add_steps(page: Page, record: RunRecord, before: int, after: int) -> None:
    """A chapter for every analysis that has results at both steps.

    Raises:
        ValueError: a step without results, or the same step twice.
    """
    for step in (before, after):
        if step not in record.steps:
            there = ", ".join(map(str, record.steps))
            raise ValueError(f"--steps {before} {after}: {record.name} has no results at step {step}; it has {there}")
    if before == after:
        raise ValueError(f"--steps {before} {after}: name two steps")
    page.chapter(f"Step {before} and step {after}", "Differences are those of the second step minus the first.")
    for name in record.frame["analysis"].drop_duplicates():
        rows = record.frame[record.frame["analysis"] == name]
        if {before, after} <= {*rows["step"]}:
            page.chapter(in_words(name))
            page.grid([_overall(record, rows, name, before, after)])
            page.grid(_cards(record, rows[rows["step"].isin([before, after])], name, before, after))


def change_of(record: RunRecord, name: str, metric: str, before: int, after: int) -> tuple[float, float] | None:
    """Interval of the change of an overall number, paired over concepts or sentences; None where nothing pairs."""
    if metric == "middle_dip":
        found = dip_between(record, name, before, after)
        return None if found is None else (found[1], found[2])
    concepts = select(record.frame, name, metric, by=("concept",))
    one, other = (concepts[concepts["step"] == step].set_index("concept")["value"] for step in (before, after))
    difference = (other - one).dropna()
    if len(difference) < FEWEST_CONCEPTS:
        return None
    contrast = paired_contrast(difference.to_numpy())
    return contrast.low, contrast.high


def dip_between(record: RunRecord, name: str, before: int, after: int) -> tuple[float, float, float] | None:
    """Change of the probe's dip with its interval, paired over sentences; None without the counts of both steps."""
    try:
        one, other = (DipCounts.from_arrow(record.table.attachment(step, name, "dip")) for step in (before, after))
    except FileNotFoundError:
        return None
    change = dip_change(one, other)
    return change.value, change.low, change.high


def _overall(record: RunRecord, rows: pd.DataFrame, name: str, before: int, after: int) -> Table | None:
    lines = []
    for metric in rows["metric"].drop_duplicates():
        found = select(rows, name, metric).set_index("step")
        if not {before, after} <= {*found.index}:
            continue
        one, other = (float(found.loc[step, "value"]) for step in (before, after))
        interval = change_of(record, name, metric, before, after)
        change = f"{other - one:+.4f}" + ("" if interval is None else f" [{interval[0]:+.4f}, {interval[1]:+.4f}]")
        lines.append((metric, f"{one:.4f}", f"{other:.4f}", change))
    if not lines:
        return None
    return Table(
        title="Overall",
        header=("measure", f"step {before}", f"step {after}", "change [95 %]"),
        rows=tuple(lines),
        note="Intervals are paired over concepts or sentences; where nothing pairs there is none.",
    )


def _cards(record: RunRecord, rows: pd.DataFrame, name: str, before: int, after: int) -> Iterator[Card]:
    for metric in rows["metric"].drop_duplicates():
        said, title = explain(record.classes.get(name, ""), metric), in_words(metric)
        layers = select(rows, name, metric, by=("layer",))
        if layers["step"].nunique() == 2:
            yield Captioned(draw.layer_curves(layers, f"{title} by layer"), said)
        languages = select(rows, name, metric, by=("language",))
        if languages["step"].nunique() == 2:
            yield Captioned(_by_language(languages, f"{title} by language", before, after), said)
        pairs = select(rows, name, metric, by=("language", "other_language"))
        if pairs["step"].nunique() == 2:
            keys = ["language", "other_language"]
            one, other = (pairs[pairs["step"] == step].set_index(keys) for step in (before, after))
            change = other.assign(value=other["value"] - one["value"]).reset_index().dropna(subset=["value"])
            figure = pair_matrix(change, f"{title}, change", directed=is_directed(change), diverging=True)
            yield Captioned(figure, said)


def _by_language(rows: pd.DataFrame, title: str, before: int, after: int) -> go.Figure:
    figure = base_figure(title, "")
    for index, step in enumerate((before, after)):
        part = rows[rows["step"] == step].sort_values("language")
        add_line(figure, part["language"], part["value"], f"step {step}", index, mode="markers")
    figure.update_xaxes(type="category")
    return figure
