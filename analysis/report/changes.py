"""Did a measure change against the untrained network? Paired over concepts, against a band of random networks.

A rise over training counts only above what random networks reach on the same sentences (an untrained network is far
above chance), and step 0 of one run is one draw of them. So the last usable snapshot is compared, concept by concept,
with several random networks of the same configuration where they were measured, else with step 0 alone. Beside every
difference stands the smallest one that would have been seen with a power of 80 %: "not shown" is not "not there".

Shapes:  C concepts   n random networks
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.report.figures import select
from analysis.report.run import RunRecord
from analysis.report.tables import with_interval
from analysis.statistics import POWER, Contrast, against_band, paired_contrast

DECISIVE = "rank_transfer"
"""The pre-registered statistic of `ConceptOverlap`: what is held out and needs no K."""
PAPER = "shared"
"""The study's number, which stands beside it."""
STRATA = {
    "same_family": "same script and family",
    "same_script": "same script, other family",
    "disjoint_scripts": "no common script",
}


@dataclass(frozen=True)
class Rise:
    """A measure at a snapshot minus its level in untrained networks, of the same concepts."""

    metric: str
    condition: str | None
    """Stratum of language pairs; None for all pairs."""
    step: int
    first: float
    """Level of the untrained networks, mean over concepts."""
    last: float
    contrast: Contrast
    num_concepts: int

    @property
    def pairs(self) -> str:
        """Which pairs of languages it is of."""
        return "all pairs" if self.condition is None else STRATA[self.condition]

    @property
    def in_a_word(self) -> str:
        """Where the interval lies; where 0 is in it, what would have been seen."""
        if self.contrast.low > 0:
            return "above"
        return "below" if self.contrast.high < 0 else f"not shown (visible from {self.contrast.visible:.4f})"

    @property
    def cells(self) -> tuple[str, str, str]:
        """Of a table: level of the untrained networks, of the snapshot, difference."""
        return f"{self.first:.4f}", f"{self.last:.4f}", self.interval

    @property
    def interval(self) -> str:
        return difference_of(self.contrast)


@dataclass(frozen=True)
class Change(Rise):
    """The rise of one run at its last usable snapshot against random networks, paired over concepts."""

    num_networks: int
    """1 means step 0 of the run itself, a single draw without a spread of its own."""

    @property
    def reference(self) -> str:
        return "the untrained network" if self.num_networks == 1 else f"{self.num_networks} random networks"

    @property
    def verdict(self) -> str:
        if self.contrast.low > 0:
            return f"above {self.reference}"
        if self.contrast.high < 0:
            return f"below {self.reference}"
        return (
            f"no difference from {self.reference} is shown; one of {self.contrast.visible:.4f} or more would have been "
            f"seen ({POWER:.0%} power)"
        )


def difference_of(contrast: Contrast) -> str:
    """A difference with its interval, for a table."""
    return with_interval(contrast.difference, contrast.low, contrast.high, "+.4f")


def concept_levels(
    record: RunRecord, analysis: str, metric: str, condition: str | None, step: int | None = None
) -> tuple[int, pd.Series, pd.DataFrame] | None:
    """The step, the value of each concept there (C,), and its levels in untrained networks (C, n).

    Random networks of the configuration where several were measured, else step 0 of the run itself. None without such
    rows at `step` (by default the last usable one) or without a level to compare with.
    """
    rows = _by_concept(record.frame, analysis, metric, condition)
    usable = [at for at in record.usable_steps if at in set(rows["step"])]
    at = usable[-1] if step is None and usable else step
    if at not in usable:
        return None
    table = rows.pivot_table(index="concept", columns="step", values="value")
    last = table[at].dropna()
    band = _by_concept(record.null_band(analysis), analysis, metric, condition)
    networks = band.pivot_table(index="concept", columns="network", values="value") if len(band) else pd.DataFrame()
    several = networks.shape[1] > 1
    if not several and (0 not in usable or at == 0):
        return None
    level = networks if several else table[[0]]
    level = level.loc[level.index.intersection(last.index)].dropna()
    return int(at), last.loc[level.index], level


def find_change(record: RunRecord, analysis: str, metric: str, condition: str | None = None) -> Change | None:
    """Compare the last usable snapshot with random networks over the per-concept rows of a metric.

    None without such rows, without a level to compare with, with fewer than two concepts, or where all of them depend
    on each other, so that nothing shows their spread.
    """
    found = concept_levels(record, analysis, metric, condition)
    if found is None or len(found[1]) < 2:
        return None
    step, last, networks = found
    clusters = concept_clusters(record, analysis, step, list(last.index))
    if len(np.unique(clusters)) < 2:
        return None
    values, reference = last.to_numpy(), networks.to_numpy()  # (C,), (C, n)
    if networks.shape[1] > 1:
        contrast = against_band(values, reference.T, clusters)
    else:
        contrast = paired_contrast(values - reference[:, 0], clusters)
    return Change(
        metric=metric,
        condition=condition,
        step=step,
        first=float(reference.mean()),
        last=float(last.mean()),
        contrast=contrast,
        num_concepts=len(last),
        num_networks=networks.shape[1],
    )


def concept_clusters(record: RunRecord, analysis: str, step: int, concepts: list[str]) -> np.ndarray:
    """(C,) a number for each concept, equal for concepts that depend on each other, see `known_clusters`."""
    numbers = with_own_numbers(known_clusters(record, analysis, step), concepts)
    return np.array([numbers[concept] for concept in concepts])


def with_own_numbers(known: Mapping[str, int], concepts: Iterable[str]) -> dict[str, int]:
    """`known`, and those of `concepts` that it lacks, each with a number of its own."""
    free = 1 + max(known.values(), default=-1)
    return {concept: free + place for place, concept in enumerate(concepts)} | dict(known)


def known_clusters(record: RunRecord, analysis: str, step: int) -> dict[str, int]:
    """Concept to the number of those that depend on each other, as a table of experts has it; empty without one.

    Of this step and analysis, else of another: it is the concept file that says so, and the tables are large, so some
    delete those of most steps.
    """
    others = sorted(record.table.entries(), key=lambda entry: entry[1] != analysis)
    for at, name in [(step, analysis), *others]:
        if record.table.path(at, name, "experts").is_file():
            table = record.table.attachment(at, name, "experts")
            if "cluster" in table.column_names:
                pairs = table.select(["concept", "cluster"]).group_by(["concept", "cluster"]).aggregate([])
                return dict(zip(pairs["concept"].to_pylist(), pairs["cluster"].to_pylist(), strict=True))
    return {}


def changes_by_stratum(record: RunRecord, analysis: str, metric: str) -> list[Change]:
    """The change over all pairs, then within each stratum of language pairs that was measured."""
    found = (find_change(record, analysis, metric, condition) for condition in (None, *STRATA))
    return [change for change in found if change is not None]


def _by_concept(frame: pd.DataFrame, analysis: str, metric: str, condition: str | None) -> pd.DataFrame:
    fields = ("concept",) if condition is None else ("concept", "condition")
    rows = select(frame, analysis, metric, by=fields)
    return rows if condition is None else rows[rows["condition"] == condition]
