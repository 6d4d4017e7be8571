"""Runs that differ in their seed alone: what holds for the training, and not for one run of it.

Every rise is taken above the untrained network of the same run, at the last step that all runs have; its interval is
over runs and concepts, both a sample, or where a number has no concepts over the runs alone.

Shapes:  R runs   C concepts
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from analysis.report.changes import (
    DECISIVE,
    PAPER,
    STRATA,
    Rise,
    concept_clusters,
    concept_levels,
    difference_of,
)
from analysis.report.explanations import heading_of, in_words
from analysis.report.figures import select
from analysis.report.headlines import headlines_of
from analysis.report.run import RunRecord, differing
from analysis.report.tables import Table, number
from analysis.statistics import mean_contrast, two_way_interval

NOT_TRAINING = ("default_root_dir", "logger", "enable_progress_bar", "log_every_n_steps")
"""Options of the trainer that change what is written, not what is trained."""


@dataclass(frozen=True)
class RiseOverRuns(Rise):
    """The rise of several runs at one step, over runs and concepts."""

    by_run: tuple[float, ...]

    @property
    def signs(self) -> str:
        return f"{sum(rise > 0 for rise in self.by_run)} of {len(self.by_run)}"


def only_seeds_differ(records: Sequence[RunRecord]) -> bool:
    """Whether the runs are one training with several seeds, by their configurations."""
    trained = [_training_of(record) for record in records]
    seeds = {record.config.get("seed_everything") for record in records}
    return None not in trained and len(seeds) == len(records) > 1 and all(one == trained[0] for one in trained)


def _training_of(record: RunRecord) -> dict | None:
    if not isinstance(record.config.get("trainer"), dict) or "seed_everything" not in record.config:
        return None
    config = deepcopy({key: value for key, value in record.config.items() if key != "seed_everything"})
    for option in NOT_TRAINING:
        config["trainer"].pop(option, None)
    return config


def rise_over_runs(
    records: Sequence[RunRecord], analysis: str, metric: str, condition: str | None = None
) -> RiseOverRuns | None:
    """The rise of a measure above the untrained networks over runs and concepts.

    None where a run lacks it, no trained step is common to all of them, or their concepts are one or all depend on each
    other.
    """
    step = _last_common(records, analysis, metric)
    if step is None or len(records) < 2:
        return None
    found = [concept_levels(record, analysis, metric, condition, step) for record in records]
    levels = [(last, networks.mean(axis=1)) for _, last, networks in filter(None, found)]
    if len(levels) < len(records):
        return None
    concepts = sorted(set.intersection(*(set(last.index) for last, _ in levels)))
    lasts = np.array([last[concepts] for last, _ in levels])  # (R, C)
    firsts = np.array([first[concepts] for _, first in levels])
    clusters = concept_clusters(records[0], analysis, step, concepts)
    if len(np.unique(clusters)) < 2:
        return None
    rises = lasts - firsts
    return RiseOverRuns(
        metric=metric,
        condition=condition,
        step=step,
        first=float(firsts.mean()),
        last=float(lasts.mean()),
        contrast=two_way_interval(rises, clusters),
        by_run=tuple(rises.mean(axis=1).tolist()),
        num_concepts=len(concepts),
    )


def _last_common(records: Sequence[RunRecord], analysis: str, metric: str) -> int | None:
    """The last usable trained step at which all runs have this metric."""
    steps = []
    for record in records:
        rows = record.frame[(record.frame["analysis"] == analysis) & (record.frame["metric"] == metric)]
        steps.append(set(record.usable_steps) & set(rows["step"]) - {0})
    return max(set.intersection(*steps), default=None)


def sharing_over_runs(records: Sequence[RunRecord]) -> tuple[list[str], list[Table]]:
    """What is to be said of concept neurons over all runs, and a table by stratum."""
    said, tables = [], []
    for analysis in _common(records):
        if records[0].classes[analysis] != "ConceptOverlap":
            continue
        for metric in (DECISIVE, PAPER):
            rises = [rise_over_runs(records, analysis, metric, condition) for condition in (None, *STRATA)]
            found = [rise for rise in rises if rise is not None]
            if found:
                said.append(_sentence(analysis, found[0], len(records)))
                tables.append(_strata(found, len(records)))
                break
    return said, tables


def _sentence(analysis: str, rise: RiseOverRuns, num_runs: int) -> str:
    what = f"{in_words(rise.metric).lower()}, {rise.pairs},"
    return (
        f"Sharing over {num_runs} runs ({analysis}): {what} "
        f"is {rise.last:.4f} at step {rise.step}, {rise.first:.4f} in the untrained networks; difference "
        f"{rise.interval} over runs and {rise.num_concepts} concepts, p {rise.contrast.p:.2g}, positive "
        f"in {rise.signs}: {rise.in_a_word}."
    )


def _strata(rises: Sequence[RiseOverRuns], num_runs: int) -> Table:
    rows = [(rise.pairs, *rise.cells, rise.signs, rise.in_a_word) for rise in rises]
    return Table(
        title=f"{in_words(rises[0].metric)} over {num_runs} runs, step {rises[0].step}",
        header=("pairs of languages", "untrained", "trained", "difference [95 %]", "runs above", ""),
        rows=tuple(rows),
        note="Interval over runs and concepts, both a sample.",
    )


def headlines_over_runs(records: Sequence[RunRecord]) -> Table | None:
    """The overall numbers that an analysis puts first, untrained and at the last step that all runs have."""
    rows = []
    for analysis in _common(records):
        class_of = records[0].classes[analysis]
        for metric in headlines_of(class_of):
            step = _last_common(records, analysis, metric)
            parts = [select(record.frame, analysis, metric).set_index("step")["value"] for record in records]
            if step is None or any(not {0, step} <= set(part.index) for part in parts):
                continue
            firsts, lasts = (np.array([part[at] for part in parts]) for at in (0, step))
            change = mean_contrast(lasts - firsts)
            rows.append(
                (
                    f"{heading_of(class_of) or in_words(analysis)}: {in_words(metric)}",
                    str(step),
                    number(float(firsts.mean())),
                    number(float(lasts.mean())),
                    difference_of(change),
                    f"{sum(lasts > firsts)} of {len(records)}",
                )
            )
    if not rows:
        return None
    return Table(
        title=f"Headline numbers, mean over {len(records)} runs",
        header=("measure", "step", "untrained", "trained", "change [95 %]", "runs above"),
        rows=tuple(rows),
        note="Interval over the runs alone: texts and concepts are the same in all of them.",
    )


def _common(records: Sequence[RunRecord]) -> list[str]:
    """Analyses that all runs have, measured with the same settings."""
    names = set.intersection(*(set(record.classes) for record in records))
    return sorted(name for name in names if not differing((record, name) for record in records))
