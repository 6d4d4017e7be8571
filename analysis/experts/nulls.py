"""What overlap of expert sets to expect when nothing is shared.

Four nulls, from naive to strict (published overlap studies print at most the first):

    uniform      two random sets of K among N units share K^2 / N; exact p by the hypergeometric distribution
    stratified   as uniform, but within sites: expert sets crowd in some layers, so more is shared by accident
    mismatched   experts of *different* concepts in the two languages: removes units that detect anything, or language
    shuffled     experts by shuffled labels of the same parallel sentences: what shared surface alone brings

Shapes:  L languages   C concepts   K experts   N units   S sites   P pairs of languages
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.sparse import csr_matrix
from scipy.stats import binom, hypergeom


def intersections(units: np.ndarray, others: np.ndarray, num_units: int) -> np.ndarray:
    """Shared units of every two expert sets: (L, C, K) and (L, C, K) flat ids to (L, C, L, C) counts."""

    def membership(sets: np.ndarray) -> csr_matrix:
        rows = sets.reshape(-1, sets.shape[-1])
        starts = np.arange(0, rows.size + 1, rows.shape[1])
        return csr_matrix((np.ones(rows.size, dtype=np.int32), rows.reshape(-1), starts), (len(rows), num_units))

    counts: np.ndarray = (membership(units) @ membership(others).T).toarray()
    return counts.reshape(*units.shape[:2], *others.shape[:2])


def matched(counts: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Same concept, two languages: (L, C, L, C) to (C, P); `pairs` is (P, 2) places of languages."""
    concepts = np.arange(counts.shape[1])
    same: np.ndarray = counts[pairs[:, 0][None], concepts[:, None], pairs[:, 1][None], concepts[:, None]]
    return same


def mismatched(counts: np.ndarray, pairs: np.ndarray, clusters: np.ndarray) -> np.ndarray | None:
    """Mean over all concepts of other clusters, both ways round: (C, P). None if there is only one cluster."""
    apart = clusters[:, None] != clusters[None, :]
    if not apart.any():
        return None
    means = np.empty((counts.shape[1], len(pairs)))
    for place, (one, other) in enumerate(pairs):
        table = counts[one, :, other, :] * apart
        means[:, place] = (table.sum(0) + table.sum(1)) / (2 * apart.sum(0))
    return means


def both_ways(table: np.ndarray) -> np.ndarray:
    """(L, C, L, C) from one half to the other: the mean of both directions, float64."""
    return (table + np.moveaxis(table, (0, 1), (2, 3))) / 2.0


def stratified(units: np.ndarray, pairs: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Expected shared units (C, P, S) if each set were spread at random within every site."""
    site = np.searchsorted(offsets, units, side="right") - 1
    num_sites = len(offsets) - 1
    per_site = np.stack([(site == index).sum(-1) for index in range(num_sites)], axis=-1)
    sizes = np.diff(offsets)
    return np.moveaxis(per_site[pairs[:, 0]] * per_site[pairs[:, 1]] / sizes, 0, 1)


def overlap_p(total: int, num_units: int, k: int, num_concepts: int) -> float:
    """P(at least `total` units shared, summed over concepts) for independent uniform sets of K among N: exact."""
    survival = _survival(num_units, k, num_concepts)
    return float(min(1.0, survival[min(total, len(survival) - 1)]))


@lru_cache(maxsize=16)
def _survival(num_units: int, k: int, num_concepts: int) -> np.ndarray:
    """P(sum >= m) for m = 0 ... C K of C independent hypergeometric counts, by convolution of their distributions."""
    single = hypergeom.pmf(np.arange(k + 1), num_units, k, k)
    power = np.ones(1)
    # Direct convolution of non-negative terms keeps the relative precision of tiny tails, which an FFT would lose.
    base, exponent = single, num_concepts
    while exponent:
        if exponent & 1:
            power = _trim(np.convolve(power, base))
        exponent >>= 1
        if exponent:
            base = _trim(np.convolve(base, base))
    full = np.zeros(num_concepts * k + 1)
    full[: len(power)] = power
    return np.cumsum(full[::-1])[::-1]


def _trim(distribution: np.ndarray) -> np.ndarray:
    """Without the tail that is zero in double precision."""
    return distribution[: int(np.flatnonzero(distribution)[-1]) + 1]


def at_least(num_languages: int, threshold: int, num_units: int, k: int) -> float:
    """Expected units, as a share of K, in the expert sets of at least `threshold` of L languages, for random sets."""
    return float(binom.sf(threshold - 1, num_languages, k / num_units) * num_units / k)
