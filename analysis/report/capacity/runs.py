"""Runs of one family that differ in size: what each of them shares, at its end and on the way there.

The compression hypothesis says that tighter capacity makes languages share more. What is compared must not depend on
the size by itself: experts are a share of all units (so chance is the same), what counts is the rise above the
untrained network on the same sentences, corrected for chance, and measures that grow with the number of units or
directions are left out or divided by it. Larger models also learn faster, so the rise is taken a second time at the
same held-out loss.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.report.changes import DECISIVE, PAPER, Change, find_change
from analysis.report.figures import select
from analysis.report.run import RunRecord, analyses_of_class, num_units, read_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CapacityRun:
    """One size trained with one seed."""

    record: RunRecord

    @property
    def size(self) -> str:
        """Name of the size, e.g. `d128`."""
        return f"d{self.width}"

    @property
    def seed(self) -> int:
        return int(self.record.config.get("seed_everything") or 0)

    @property
    def finished(self) -> bool:
        """Whether both the untrained network and the last one of the training were measured."""
        last = (self.record.config.get("trainer") or {}).get("max_steps")
        return {0, last} <= set(self.record.steps)

    @cached_property
    def width(self) -> int:
        """Hidden size: the axis of capacity.

        Raises:
            ValueError: the run's configuration does not say.
        """
        width = (self.record.config.get("model") or {}).get("d_model")
        if not isinstance(width, int):
            raise ValueError(f"{self.record.folder}/config.yaml: no model.d_model, so the run's capacity is unknown")
        return width

    @cached_property
    def last_step(self) -> int:
        return max(self.record.usable_steps)

    @cached_property
    def tokens(self) -> int | None:
        seen = self.record.frame["tokens"].dropna()
        return int(seen.max()) if len(seen) else None

    @cached_property
    def overlap(self) -> str | None:
        """Name of the first ConceptOverlap of the run."""
        return next(iter(analyses_of_class(self.record, "ConceptOverlap")), None)

    @cached_property
    def chance(self) -> float | None:
        """K / N."""
        rows = select(self.record.frame, self.overlap, "shared") if self.overlap else pd.DataFrame()
        return float(rows["chance"].iloc[-1]) if len(rows) and rows["chance"].notna().all() else None

    @cached_property
    def num_units(self) -> int | None:
        """N, the units that experts were chosen among."""
        return num_units(self.record, self.overlap) if self.overlap else None

    @cached_property
    def metric(self) -> str:
        """The measure whose rise is compared: the held-out statistic, or the study's number in older results."""
        rows = select(self.record.frame, self.overlap, DECISIVE, by=("concept",)) if self.overlap else pd.DataFrame()
        return DECISIVE if len(rows) else PAPER

    @cached_property
    def change(self) -> Change | None:
        """`metric` at the last usable snapshot against random networks, paired over concepts."""
        return find_change(self.record, self.overlap, self.metric) if self.overlap else None

    @cached_property
    def rise(self) -> float | None:
        """Last minus random networks; for `shared` divided by 1 - chance, so that sizes compare."""
        return None if self.change is None else self._corrected(self.change.contrast.difference)

    def _corrected(self, difference: float) -> float:
        return difference if self.metric == DECISIVE or not self.chance else difference / (1.0 - self.chance)

    @cached_property
    def bits_per_byte(self) -> float | None:
        """Held-out loss at the last snapshot, mean over languages."""
        path = self.path()
        return float(path["bits_per_byte"].iloc[-1]) if len(path) and path["bits_per_byte"].notna().iloc[-1] else None

    def overall(self, analysis_class: str, metric: str) -> float | None:
        """The overall value of a metric at the last snapshot, or None."""
        for name in analyses_of_class(self.record, analysis_class):
            rows = select(self.record.frame, name, metric)
            rows = rows[rows["step"] == self.last_step]
            if len(rows):
                return float(rows["value"].iloc[0])
        return None

    def path(self) -> pd.DataFrame:
        """step, tokens, bits_per_byte, rise (above random networks) of every measured snapshot."""
        parts = [self.record.frame[["step", "tokens"]].drop_duplicates("step").set_index("step")]
        losses = analyses_of_class(self.record, "HeldOutLoss")
        if losses:
            rows = select(self.record.frame, losses[0], "bits_per_byte")
            parts.append(rows.set_index("step")["value"].rename("bits_per_byte"))
        if self.overlap and self.change is not None:
            level = select(self.record.frame, self.overlap, self.metric).set_index("step")["value"]
            parts.append((level - self.change.first).map(self._corrected).rename("rise"))
        table = pd.concat(parts, axis=1).sort_index().reset_index()
        return table.reindex(columns=["step", "tokens", "bits_per_byte", "rise"])

    def rise_at_loss(self, bits_per_byte: float) -> float | None:
        """The rise where the held-out loss first reaches this value, between snapshots on a straight line."""
        table = self.path().dropna(subset=["bits_per_byte", "rise"])
        return at_loss(table["bits_per_byte"].tolist(), table["rise"].tolist(), bits_per_byte)


def at_loss(losses: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """The value where the held-out loss first reaches `target`, on a straight line between snapshots; None if never."""
    reached = np.flatnonzero(np.asarray(losses) <= target)
    if not len(reached):
        return None
    after = int(reached[0])
    if after == 0:
        return float(values[0])
    share = (losses[after - 1] - target) / (losses[after - 1] - losses[after])
    return float(values[after - 1] + share * (values[after] - values[after - 1]))


def read_family(folders: Sequence[str | Path]) -> list[CapacityRun]:
    """The finished ones of these runs, smallest first.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: no finished run, a run without hidden size, or two runs of one width and seed.
    """
    runs = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; give the folders of the runs")
        run = CapacityRun(read_run(folder)) if (folder / "results").is_dir() else None
        if run is not None and run.finished:
            runs.append(run)
        else:
            logger.warning("%s: not finished, left out", folder)
    if not runs:
        raise ValueError("no finished run: nothing can be compared yet")
    seen: dict[tuple[int, int], CapacityRun] = {}
    for run in runs:
        if (twin := seen.setdefault((run.width, run.seed), run)) is not run:
            raise ValueError(
                f"{twin.record.folder} and {run.record.folder} both have d_model {run.width} and seed {run.seed}; "
                "two equal runs tell nothing about chance, leave one out"
            )
    return sorted(runs, key=lambda run: (run.width, run.seed))


def by_size(runs: Sequence[CapacityRun]) -> Iterator[tuple[str, list[CapacityRun]]]:
    """The runs of each size, sizes in the order of the runs."""
    for size in dict.fromkeys(run.size for run in runs):
        yield size, [run for run in runs if run.size == size]


def common_loss(runs: Sequence[CapacityRun]) -> float | None:
    """The lowest held-out loss that every run reached, or None if one has no such rows."""
    lowest = []
    for run in runs:
        losses = run.path().dropna(subset=["bits_per_byte", "rise"])["bits_per_byte"]
        if losses.empty:
            return None
        lowest.append(float(losses.min()))
    return max(lowest)
