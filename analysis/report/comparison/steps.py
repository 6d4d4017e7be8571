"""Two steps of one run beside each other: what changed in between, paired where the results allow it.

Overall numbers of both with their difference; the interval of a difference is paired over concepts (where an analysis
has a row for each) or over sentences (the dip of the probe), since both steps were measured on the same ones. Then
curves over layers, and pairs of languages as a difference.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.probes.dip import DipCounts, Estimate, dip_change
from analysis.report import figures as draw
from analysis.report.changes import concept_clusters
from analysis.report.chapters.any_measure import captioned
from analysis.report.explanations import heading_of, in_words, unit_of
from analysis.report.figures import select
from analysis.report.page import Card, Page
from analysis.report.pair_figures import change_of_pairs, is_directed, pair_matrix
from analysis.report.run import RunRecord
from analysis.report.tables import Table, number, with_interval
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
    for sentence in record.warnings:
        page.paragraph(sentence)
    for name in record.frame["analysis"].drop_duplicates():
        rows = record.frame[record.frame["analysis"] == name]
        if {before, after} <= {*rows["step"]}:
            page.chapter(heading_of(record.classes.get(name, "")) or in_words(name))
            page.grid([_overall(record, rows, name, before, after)])
            page.grid(_cards(record, rows[rows["step"].isin([before, after])], name, before, after))


def change_of(record: RunRecord, name: str, metric: str, before: int, after: int) -> tuple[float, float] | None:
    """Interval of the change of an overall number, paired over concepts or sentences; None where nothing pairs."""
    if metric == "middle_dip":
        found = dip_between(record, name, before, after)
        return None if found is None else (found.low, found.high)
    concepts = select(record.frame, name, metric, by=("concept",))
    one, other = (concepts[concepts["step"] == step].set_index("concept")["value"] for step in (before, after))
    difference = (other - one).dropna()
    clusters = concept_clusters(record, name, after, list(difference.index))
    if len(np.unique(clusters)) < FEWEST_CONCEPTS:
        return None
    contrast = paired_contrast(difference.to_numpy(), clusters)
    return contrast.low, contrast.high


def dip_between(record: RunRecord, name: str, before: int, after: int) -> Estimate | None:
    """Change of the probe's dip with its interval, paired over sentences; None without the counts of both steps."""
    try:
        one, other = (DipCounts.from_arrow(record.table.attachment(step, name, "dip")) for step in (before, after))
    except FileNotFoundError:
        return None
    return dip_change(one, other)


def _overall(record: RunRecord, rows: pd.DataFrame, name: str, before: int, after: int) -> Table | None:
    lines = []
    for metric in rows["metric"].drop_duplicates():
        found = select(rows, name, metric).set_index("step")
        if not {before, after} <= {*found.index}:
            continue
        one, other = (float(found.loc[step, "value"]) for step in (before, after))
        interval = change_of(record, name, metric, before, after) or (None, None)
        lines.append((in_words(metric), number(one), number(other), with_interval(other - one, *interval, "+.4f")))
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
        title, unit = in_words(metric), unit_of(record.classes.get(name, ""), metric)
        layers = select(rows, name, metric, by=("layer",))
        if layers["step"].nunique() == 2:
            yield captioned(record, name, metric, draw.layer_curves(layers, f"{title} by layer", unit=unit))
        languages = select(rows, name, metric, by=("language",))
        if languages["step"].nunique() == 2:
            yield captioned(record, name, metric, draw.by_language(languages, f"{title} by language", unit=unit))
        pairs = select(rows, name, metric, by=("language", "other_language"))
        if pairs["step"].nunique() == 2:
            change, directed = change_of_pairs(pairs, before, after), is_directed(pairs)
            figure = pair_matrix(change, f"{title}, change", unit=unit, directed=directed, diverging=True)
            yield captioned(record, name, metric, figure)
