"""Scores of probes with intervals over sentences, as rows.

Shapes:  Y layers   N sampled tokens   S seeds   G keys
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_matrix

from analysis.base import Row
from analysis.extraction.states import TokenSample
from analysis.probes.folds import cluster_draws


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
    sums, totals = _by_key(scores, mask, sample)
    sums = np.concatenate([sums, sums.mean(axis=0, keepdims=True)])  # last: the mean over layers
    low, high = np.quantile(cluster_draws(sums, totals), [0.025, 0.975], axis=-1)
    value = sums.sum(axis=-1) / totals.sum(axis=-1)  # (Y + 1, S)
    for index, layer in enumerate([*layers, None]):
        yield Row(
            metric=metric, value=value[index].mean(), layer=layer, chance=chance, low=low[index], high=high[index]
        )
        if layer is not None:
            for seed, own in zip(seeds, value[index], strict=False):
                yield Row(metric=metric, value=own, layer=layer, seed=seed, chance=chance)


def spread_row(correct: np.ndarray, mask: np.ndarray, sample: TokenSample) -> Row:
    """Largest minus smallest accuracy of a layer, from right answers (Y, S, N) on the tokens of `mask` (S, N).

    Chance is what the noise of the sentences alone would spread over equal layers; the interval is normal, with the
    standard error of a bootstrap over keys.
    """
    sums, totals = _by_key(correct, mask, sample)
    draws = cluster_draws(sums, totals)  # (Y, R)
    value = (sums.sum(axis=-1) / totals.sum(axis=-1)).mean(axis=-1)  # (Y,)
    noise = np.ptp(draws - value[:, None], axis=0).mean()
    error = 1.96 * float(np.ptp(draws, axis=0).std())
    spread = float(np.ptp(value))
    return Row(metric="spread", value=spread, chance=noise, low=max(0.0, spread - error), high=spread + error)


def _by_key(scores: np.ndarray, mask: np.ndarray, sample: TokenSample) -> tuple[np.ndarray, np.ndarray]:
    """Sums of scores (Y, S, G) and numbers of tokens (S, G) of every key."""
    keyed = csr_matrix((np.ones(len(sample)), (np.arange(len(sample)), sample.key)))  # (N, G)
    sums = np.stack([(scores * mask)[:, number] @ keyed for number in range(len(mask))], axis=1)
    return sums, mask @ keyed
