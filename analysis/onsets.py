"""When does a measure leave its null band, and which of two measures leaves it first?

The onset of one training run is where its curve crosses the edge of the band for good: inside at one snapshot, outside
at the next and at all later ones. Snapshots are at powers of two, so time is counted in octaves (log2 of the step), and
between snapshots the curve is a monotone cubic (Fritsch and Carlson 1980): a straight line is up to 0.2 octaves early
where a curve takes off. What is before the first snapshot after step 0 is known only to be before it (left-censored),
what never comes is not an onset (right-censored). Runs are the sample: the mean over runs has Student's interval, to
which the curve's unknown shape between snapshots adds its part; the difference of two onsets is paired within runs.
tests/benchmarks/bench_coverage.py says how they cover.

Shapes:  T snapshots   R training runs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.stats import t

from analysis.statistics import Contrast, mean_contrast


@dataclass(frozen=True)
class Onset:
    """When one run left the band."""

    inside: int
    """The last snapshot before; the step of the first one if the run begins outside."""
    outside: int | None
    """The first snapshot from which on all are outside; None if there is none."""
    octave: float | None
    """log2 of the step at which the curve crosses the edge; of `outside` where no snapshot but step 0 is before it;
    None if the run never leaves."""
    unsure: float = 0.0
    """Octaves between the crossings of a straight line and of a parabola that starts level, between the snapshots."""

    @property
    def censored(self) -> bool:
        """Whether only a bound of the onset is known."""
        return self.octave is None or self.inside == 0 or self.inside == self.outside


def band_edges(untrained: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Where one more untrained network would lie with a probability of `level`, from several of them.

    Raises:
        ValueError: fewer than two values.
    """
    values = np.asarray(untrained, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"{len(values)} untrained networks make no band; at least two are needed")
    half = t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
    return float(values.mean() - half), float(values.mean() + half)


def find_onset(steps: Sequence[int], values: Sequence[float], edge: float) -> Onset:
    """Where `values` (T,) at ascending `steps` rise above `edge` for good; give both with the other sign for a fall.

    Raises:
        ValueError: no snapshot, steps that do not ascend, or different lengths.
    """
    if not len(steps) == len(values) or not len(steps) or list(steps) != sorted(set(steps)) or steps[0] < 0:
        raise ValueError(f"an onset needs ascending steps and a value for each, got {len(steps)} and {len(values)}")
    outside = np.asarray(values, dtype=np.float64) > edge
    lasting = np.flatnonzero(np.logical_and.accumulate(outside[::-1])[::-1])
    if not len(lasting):
        return Onset(inside=steps[-1], outside=None, octave=None)
    place = int(lasting[0])
    before, after = steps[max(0, place - 1)], steps[place]
    if before == 0 or place == 0:
        return Onset(inside=before, outside=after, octave=float(np.log2(max(1, after))))
    begin, length = np.log2(before), np.log2(after) - np.log2(before)
    share = (edge - values[place - 1]) / (values[place] - values[place - 1])
    octaves = np.log2([step or steps[1] / 2 for step in steps])  # step 0 an octave before the first one
    crossings = PchipInterpolator(octaves, np.asarray(values) - edge).roots(extrapolate=False)
    octave = crossings[np.argmin(np.abs(crossings - begin - length / 2))]
    unsure = float(length * (np.sqrt(share) - share))
    return Onset(inside=before, outside=after, octave=float(np.clip(octave, begin, begin + length)), unsure=unsure)


def mean_onset(onsets: Sequence[Onset]) -> Contrast | None:
    """Mean over runs in octaves; None where one of them is only bounded, so that no mean is known."""
    if any(onset.censored for onset in onsets):
        return None
    return mean_contrast(_octaves(onsets), _unseen(onsets))


def onset_difference(first: Sequence[Onset], second: Sequence[Onset]) -> Contrast | None:
    """Octaves by which the second comes later than the first, paired over runs; None as in `mean_onset`.

    Raises:
        ValueError: not the same number of runs.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} runs cannot be paired")
    if any(onset.censored for onset in (*first, *second)):
        return None
    return mean_contrast(_octaves(second) - _octaves(first), _unseen(first) + _unseen(second))


def _octaves(onsets: Sequence[Onset]) -> np.ndarray:
    return np.array([onset.octave for onset in onsets], dtype=np.float64)


def _unseen(onsets: Sequence[Onset]) -> float:
    """Variance by the shape between snapshots, as if all runs erred alike: uniform between the two crossings."""
    return float(np.mean([onset.unsure for onset in onsets])) ** 2 / 12
