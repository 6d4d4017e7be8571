"""How many dimensions a cloud of states uses: TwoNN, by the ratio of its two nearest distances.

Facco et al., Scientific Reports 2017.

Shapes:  n states   D hidden size
"""

from __future__ import annotations

import torch
from torch import Tensor

DISCARDED_SHARE = 0.1
"""TwoNN leaves out this share of the largest ratios, as in the paper: they come from the sparse border of the cloud."""


def squared_distances(states: Tensor) -> Tensor:
    """(n, n) float64 squared Euclidean distances of states (n, D); 0 for copies, infinity on the diagonal."""
    exact = states.double()
    exact = exact - exact.mean(dim=0)
    norms = exact.square().sum(dim=1)
    sums = norms[:, None] + norms
    squared = sums - 2 * exact @ exact.T
    squared = torch.where(squared <= 1e-12 * sums, 0.0, squared)  # the rounding of the product
    return squared.fill_diagonal_(torch.inf)


def two_nn(squared: Tensor) -> float:
    """Intrinsic dimension from squared distances (n, n); copies count once, fewer than 3 distinct states have none (0).

    With mu the ratio of the second to the first distance, log mu is exponential with rate d; the largest tenth of the
    ratios is known only to be large (censored), which gives the unbiased maximum-likelihood estimate.
    """
    original = ~(squared == 0).triu(diagonal=1).any(dim=0)
    if not bool(original.all()):
        squared = squared[original][:, original]
    if len(squared) < 3:
        return 0.0
    nearest = squared.topk(2, dim=1, largest=False).values
    ratio = (0.5 * torch.log(nearest[:, 1] / nearest[:, 0])).sort().values
    kept = int(len(ratio) * (1 - DISCARDED_SHARE))
    total = float(ratio[:kept].sum() + (len(ratio) - kept) * ratio[kept - 1])
    return (kept - 1) / total if total > 0 else 0.0
