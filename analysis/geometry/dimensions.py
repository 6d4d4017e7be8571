"""How many dimensions a cloud of states uses: TwoNN, by the ratio of its two nearest distances.

Facco et al., Scientific Reports 2017.

Shapes:  n states   D hidden size
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEIGHBOURS = 32
"""Nearest states that are looked at first: enough for the two nearest whichever bucket is left out."""
DISCARDED_SHARE = 0.1
"""TwoNN leaves out this share of the largest ratios, as in the paper: they come from the sparse border of the cloud."""


def squared_distances(states: Tensor, origin: Tensor | None = None) -> Tensor:
    """(n, n) float64 squared Euclidean distances of states (n, D); 0 for copies, infinity on the diagonal.

    Args:
        origin: (n,) int64: states of one origin are copies, whatever rounding made of them.
    """
    exact = states.double()
    exact = exact - exact.mean(dim=0)
    norms = exact.square().sum(dim=1)
    sums = norms[:, None] + norms
    squared = sums - 2 * exact @ exact.T
    squared = torch.where(squared <= 1e-12 * sums, 0.0, squared)  # the rounding of the product
    if origin is not None:
        squared[origin[:, None] == origin] = 0
    return squared.fill_diagonal_(torch.inf)


def two_nn(squared: Tensor, bucket: Tensor, buckets: int) -> list[float]:
    """Intrinsic dimension with all states, then without those of each bucket (1 + B values), from squared distances.

    With mu the ratio of the second to the first distance, log mu is exponential with rate d; the largest tenth of the
    ratios is known only to be large (censored), which gives the unbiased maximum-likelihood estimate. Copies count
    once. NaN where there is none: fewer than 3 distinct states, or ratios that are all 1.

    Args:
        squared: (n, n), infinity on the diagonal.
        bucket: (n,) int64 in [0, B).
    """
    near, who = squared.topk(min(NEIGHBOURS, len(squared)), dim=1, largest=False)
    original, copy = (squared == 0).triu(diagonal=1).nonzero(as_tuple=True)
    found = []
    for left_out in range(-1, buckets):
        kept = bucket != left_out
        kept[copy[bucket[original] != left_out]] = False
        rows = kept.nonzero().flatten()
        if len(rows) < 3:
            found.append(math.nan)
            continue
        nearest = torch.where(kept[who[rows]], near[rows], torch.inf).topk(2, dim=1, largest=False).values
        lonely = nearest[:, 1].isinf()  # most of its neighbours were left out
        if bool(lonely.any()):
            nearest[lonely] = squared[rows[lonely]][:, rows].topk(2, dim=1, largest=False).values
        found.append(_dimension(nearest))
    return found


def _dimension(nearest: Tensor) -> float:
    """From the two smallest squared distances (n, 2) of every state."""
    ratio = (0.5 * torch.log(nearest[:, 1] / nearest[:, 0])).sort().values
    kept = int(len(ratio) * (1 - DISCARDED_SHARE))
    total = float(ratio[:kept].sum() + (len(ratio) - kept) * ratio[kept - 1])
    return (kept - 1) / total if total > 0 else math.nan
