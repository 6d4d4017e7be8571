"""Does something rise or fall with the size of the model? An exact test for a handful of runs.

Runs with one seed saw the same text in the same order, so they belong together: under the null the sizes of a seed may
be exchanged among its runs. The statistic is Spearman's correlation over all runs; its null distribution is that of all
exchanges of sizes within seeds, counted exactly (a permutation test in blocks, as Page's, JASA 1963). With few runs no
arrangement reaches a small p, which `smallest_p` tells before anybody reads the result.

Shapes:  R runs   b runs of one block
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.stats import rankdata

LARGEST_BLOCK = 8
"""8! = 40,320 arrangements of one block are still counted in no time."""


@dataclass(frozen=True)
class Trend:
    """A rank correlation over runs and how often exchanges within blocks give one at least as far from its mean."""

    correlation: float
    """Spearman's, over all runs; 0 where one of the two never changes."""
    p: float
    """Two-sided."""
    smallest_p: float
    """What the most extreme arrangement of the same numbers would have given."""
    num_runs: int
    direction: int
    """Of the deviation that `p` is of, within blocks: 1 rising, -1 falling, 0 neither. Where blocks have different x,
    the correlation over all runs may have another sign."""

    def decided(self, alpha: float = 0.05) -> bool:
        """Whether any outcome could have had p of at most `alpha`."""
        return self.smallest_p <= alpha


def trend_test(x: Sequence[float], y: Sequence[float], blocks: Sequence[Hashable]) -> Trend:
    """Exact two-sided permutation test of Spearman's correlation; x is exchanged within blocks only.

    Args:
        x, y: (R,) finite numbers.
        blocks: (R,) which runs may exchange their x.

    Raises:
        ValueError: different lengths, no runs, values that are not finite, or a block too large to be counted.
    """
    first, second = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not len(first) == len(second) == len(blocks) or not len(first):
        raise ValueError(f"a trend needs x, y and blocks of one length above 0, got {len(x)}, {len(y)}, {len(blocks)}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a trend over values that are not finite")
    # Twice the midranks are whole numbers, so that equal statistics are equal to the last bit.
    ranks_x, ranks_y = (np.rint(2 * rankdata(values)).astype(np.int64) for values in (first, second))
    totals: np.ndarray = np.zeros(1, dtype=np.int64)
    probabilities: np.ndarray = np.ones(1)
    for block in dict.fromkeys(blocks):
        members = [place for place, name in enumerate(blocks) if name == block]
        if len(members) > LARGEST_BLOCK:
            raise ValueError(f"{len(members)} runs of one block ({block}); at most {LARGEST_BLOCK} can be counted")
        orders = np.array(list(permutations(ranks_x[members])))  # (b!, b)
        sums, counts = np.unique(orders @ ranks_y[members], return_counts=True)
        combined = (totals[:, None] + sums).ravel()
        weights = (probabilities[:, None] * (counts / counts.sum())).ravel()
        totals, place = np.unique(combined, return_inverse=True)
        probabilities = np.bincount(place, weights)
    deviation = totals - probabilities @ totals
    distance, seen = np.abs(deviation), int(np.searchsorted(totals, int(ranks_x @ ranks_y)))
    observed = distance[seen]
    tolerance = 1e-9 * max(1.0, float(distance.max()))
    return Trend(
        correlation=_correlation(ranks_x, ranks_y),
        p=min(1.0, float(probabilities[distance >= observed - tolerance].sum())),
        smallest_p=min(1.0, float(probabilities[distance >= distance.max() - tolerance].sum())),
        num_runs=len(first),
        direction=int(np.sign(deviation[seen])) if observed > tolerance else 0,
    )


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if len(set(x.tolist())) < 2 or len(set(y.tolist())) < 2:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
