"""Two steps of one run beside each other: what changed in between, paired where the results allow it.

First the changes whose interval leaves 0 out, then overall numbers of both with their difference, whose interval is
paired over concepts (where an analysis has a row for each) or over sentences (the dip of the probe), since both steps
were measured on the same ones. Then curves over layers, and pairs of languages as a difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

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
    analyses = record.frame.groupby("analysis", sort=False)
    measured = {str(name): rows for name, rows in analyses if {before, after} <= {*rows["step"]}}
    changes = {name: _changes(record, rows, name, before, after) for name, rows in measured.items()}
    header = (f"step {before}", f"step {after}", "change [95 %]")
    page.grid([_certain(changes, header)])
    for name, rows in measured.items():
        page.chapter(heading_of(record.classes.get(name, "")) or in_words(name))
        if changes[name]:
            note = "Intervals are paired over concepts or sentences; where nothing pairs there is none."
            lines = tuple(change.cells for change in changes[name])
            page.grid([Table("Overall", ("measure", *header), lines, note)])
        page.grid(_cards(record, rows[rows["step"].isin([before, after])], name, before, after))


class StepChange(NamedTuple):
    """An overall number at two steps."""

    metric: str
    before: float
    after: float
    interval: tuple[float, float] | None

    @property
    def leaves_zero_out(self) -> bool:
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    @property
    def cells(self) -> tuple[str, ...]:
        low, high = self.interval or (None, None)
        change = with_interval(self.after - self.before, low, high, "+.4f")
        return in_words(self.metric), number(self.before), number(self.after), change


def _changes(record: RunRecord, rows: pd.DataFrame, name: str, before: int, after: int) -> list[StepChange]:
    found = []
    for metric in rows["metric"].drop_duplicates():
        values = select(rows, name, metric).set_index("step")["value"]
        if {before, after} <= {*values.index}:
            interval = change_of(record, name, metric, before, after)
            found.append(StepChange(metric, float(values[before]), float(values[after]), interval))
    return found


def _certain(changes: Mapping[str, Sequence[StepChange]], header: tuple[str, ...]) -> Table:
    """What a page of differences begins with: those that are no noise of concepts or sentences."""
    paired = [(name, change) for name, of_name in changes.items() for change in of_name if change.interval]
    rows = tuple((in_words(name), *change.cells) for name, change in paired if change.leaves_zero_out)
    note = (
        f"{len(rows)} of {len(paired)} measures that can be paired, each at 95 %, not corrected for their number; "
        "others have no interval of the difference."
    )
    return Table("Changes whose interval leaves 0 out", ("analysis", "measure", *header), rows, note)


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
    """Change of the probe's dip with its interval, paired over sentences; None without counts of the same ones."""
    try:
        one, other = (DipCounts.from_arrow(record.table.attachment(step, name, "dip")) for step in (before, after))
    except FileNotFoundError:
        return None
    return dip_change(one, other) if set(one.keys) & set(other.keys) else None


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
