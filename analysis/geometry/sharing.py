"""Do languages vary in the same directions? Overlap of their covariances, free of the noise that grows with the width.

For covariances C_a, C_b (trace 1) the overlap is tr(C_a C_b); for directions that have nothing to do with each other it
is 1 / D. Sharing of two languages is the excess over that, relative to the excess of a language over itself:

    S_ab = (tr C_a C_b - 1/D) / sqrt((tr C_a C_a' - 1/D) (tr C_b C_b' - 1/D))

C and C' come from disjoint halves of the sentences, across languages too. So every trace is unbiased: S is 1 for equal
populations and 0 for unrelated ones, whatever the numbers of states and dimensions. A rate or rank of an estimated
covariance is neither: it falls with the width although nothing is shared less.

Shapes:  L languages   B buckets of sentences   N states   D hidden size   R = 1 + B leavings-out (first: none)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_EXCESS = 1e-3
"""Own excess, relative to 1 / D, below which no direction stands out that could be shared."""


@dataclass(frozen=True)
class CovarianceSharing:
    """Sharing with all sentences, then without each bucket of them; NaN where no direction stands out."""

    pairs: Tensor
    """(R, L, L) float64."""
    overall: Tensor
    """(R,) float64: excess of all pairs that count over what it would be if they were equal."""


def share_covariance(
    states: Tensor, language: Tensor, bucket: Tensor, buckets: int, counted: Tensor
) -> CovarianceSharing:
    """Sharing of every two languages.

    Coordinates are first brought to the same variance within languages: a few huge ones would decide alone.

    Args:
        states: (N, D).
        language: (N,) int64 index of the language.
        bucket: (N,) int64 in [0, buckets): sentences of even buckets are one half, of odd ones the other; translations
            must be in the same bucket.
        counted: (L,) bool, languages whose pairs with each other make `overall`.

    Raises:
        ValueError: a language with fewer than two states in a half.
    """
    languages = len(counted)
    label = language * buckets + bucket
    counts = torch.bincount(label, minlength=languages * buckets).view(languages, buckets).double()
    halves = torch.stack([torch.arange(buckets) % 2 == side for side in (0, 1)]).double().to(states.device)  # (2, B)
    if float((counts @ halves.T).min()) < 2:
        raise ValueError("a language has fewer than two states in one half of the sentences: give more texts")
    scaled = _standardise(states, language, bucket % 2)
    first, second = (bucket % 2 == side for side in (0, 1))
    products = (scaled[first] @ scaled[second].T).square().double()
    size = languages * buckets
    rows = products.new_zeros(size, products.shape[1]).index_add_(0, label[first], products)
    blocks = rows.new_zeros(size, size).index_add_(1, label[second], rows).view(languages, buckets, languages, buckets)
    power = torch.zeros(size, dtype=torch.float64, device=states.device)
    power.index_add_(0, label, scaled.square().sum(dim=1).double())
    kept = torch.cat([torch.ones(1, buckets), 1 - torch.eye(buckets)]).double().to(states.device)  # (R, B)
    freedom = [(kept * half) @ counts.T - 1 for half in halves]  # (R, L) each
    variance = [(kept * half) @ power.view(languages, buckets).T / n for half, n in zip(halves, freedom, strict=True)]
    overlap = torch.einsum("rb,lbmc,rc->rlm", kept, blocks, kept) / (freedom[0][:, :, None] * freedom[1][:, None])
    unrelated = variance[0][:, :, None] * variance[1][:, None] / states.shape[1]
    excess = (overlap - unrelated) / unrelated
    excess = 0.5 * (excess + excess.mT)
    own = excess.diagonal(dim1=1, dim2=2)
    own = torch.where(own > LEAST_EXCESS, own, torch.nan)
    equal = (own[:, :, None] * own[:, None]).sqrt()
    above = torch.triu(counted[:, None] & counted, diagonal=1).to(states.device)
    return CovarianceSharing(excess / equal, excess[:, above].sum(dim=1) / equal[:, above].sum(dim=1))


def _standardise(states: Tensor, language: Tensor, half: Tensor) -> Tensor:
    """States centred in each language and half, with equal variance of all coordinates; constant ones are 0."""
    cell = 2 * language + half
    size = int(cell.max()) + 1
    number = torch.bincount(cell, minlength=size).clamp(min=1)
    mean = states.new_zeros(size, states.shape[1]).index_add_(0, cell, states) / number[:, None]
    centred = states - mean[cell]
    scale = centred.square().mean(dim=0).sqrt()
    constant = scale <= 10 * torch.finfo(states.dtype).eps * states.abs().amax(dim=0)
    return torch.where(constant, 0.0, centred / torch.where(constant, 1.0, scale))
