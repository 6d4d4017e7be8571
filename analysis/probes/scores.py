"""Scores of probes with intervals over sentences, as rows.

Shapes:  Y layers   N sampled tokens   S seeds   G keys
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_matrix

from analysis.base import Row
from analysis.extraction.states import TokenSample
from analysis.probes.folds import cluster_intervals


def score_rows(
    metric: str,
    scores: np.ndarray,
    mask: np.ndarray,
    sample: TokenSample,
    layers: Sequence[int],
    chance: float,
    seeds: Sequence[int] = (),
) -> Iterator[Row]:
    """Mean score per layer and over layers with an interval from one bootstrap over keys; per layer and seed on demand.

    Args:
        scores: (Y, S, N), such as whether the prediction was right.
        mask: (S, N) bool, the tokens that count; at least one a seed.
        seeds: names of the S seeds if each is to have its row.
    """
    keyed = csr_matrix((np.ones(len(sample)), (np.arange(len(sample)), sample.key)))  # (N, G)
    sums = np.stack([(scores * mask)[:, number] @ keyed for number in range(len(mask))], axis=1)  # (Y, S, G)
    sums = np.concatenate([sums, sums.mean(axis=0, keepdims=True)])  # last: the mean over layers
    totals = mask @ keyed  # (S, G)
    low, high = cluster_intervals(sums, totals)
    value = sums.sum(axis=-1) / totals.sum(axis=-1)  # (Y + 1, S)
    for index, layer in enumerate([*layers, None]):
        yield Row(
            metric=metric,
            value=float(value[index].mean()),
            layer=layer,
            chance=chance,
            low=float(low[index]),
            high=float(high[index]),
        )
        if layer is not None:
            for seed, own in zip(seeds, value[index], strict=False):
                yield Row(metric=metric, value=float(own), layer=layer, seed=seed, chance=chance)
