"""Do similar languages share more? Regression of a table of pairs on distances, tested by permuting the languages.

Pairs that have a language in common are not independent, so 66 pairs of 12 languages are no 66 observations: what may
be exchanged is the languages (Mantel 1967). With several distances at once (script, family, vocabulary), which go
together, the residual of one distance given the others is permuted (multiple regression on distance matrices with
double semi-partialing; Dekker, Krackhardt and Snijders, Psychometrika 2007): its size is then right for each of them
whatever the others do, which permuting the response is not.

Shapes:  L languages   P = L (L - 1) / 2 pairs   D distances   R permutations
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

BLOCK = 1000
"""Permutations at a time."""


@dataclass(frozen=True)
class Association:
    """What one distance explains of the response, the other distances held."""

    coefficient: float
    """Change of the response for one unit of the distance."""
    correlation: float
    """Partial correlation."""
    p: float
    """Two-sided, by permutation; at least 1 / (permutations + 1)."""


def regress_on_distances(
    languages: Sequence[str],
    response: Mapping[tuple[str, str], float],
    distances: Mapping[str, Mapping[tuple[str, str], float]],
    permutations: int = 9999,
    seed: int = 0,
) -> dict[str, Association]:
    """Regress the response of every pair of languages on all distances at once.

    Args:
        response: (language, other language), in the order of `languages`, to a number.
        distances: name to a distance of every pair.

    Raises:
        ValueError: fewer than four languages, a pair without a number, or a distance that the others determine.
    """
    size = len(languages)
    if size < 4:
        raise ValueError(f"{size} languages can hardly be permuted; at least 4 are needed")
    pairs = list(combinations(languages, 2))
    values = {"response": response, **distances}
    missing = [f"{name} of {'-'.join(pair)}" for name, of in values.items() for pair in pairs if pair not in of]
    if missing:
        raise ValueError(f"no {missing[0]} ({len(missing)} are missing)")
    one, other = np.triu_indices(size, 1)
    table = {name: np.array([of[pair] for pair in pairs], dtype=np.float64) for name, of in values.items()}
    found = {}
    for name in distances:
        rest = np.stack([np.ones(len(pairs)), *(table[own] for own in distances if own != name)], axis=1)
        free = np.eye(len(pairs)) - rest @ np.linalg.pinv(rest)  # takes off what the other distances explain
        left, target = free @ table[name], free @ table["response"]
        if left @ left <= 1e-9 * max(1e-12, float(((table[name] - table[name].mean()) ** 2).sum())):
            raise ValueError(f"{name} is the same for all pairs, or follows from the other distances: leave it out")
        square = np.zeros((size, size))
        square[one, other] = square[other, one] = left
        generator = np.random.default_rng(seed)
        observed = _correlation(left[None], target)[0]
        extreme = 1
        for first in range(0, permutations, BLOCK):
            count = min(BLOCK, permutations - first)
            order = np.argsort(generator.random((count, size)), axis=1)
            permuted = square[order[:, one], order[:, other]] @ free  # (R, P)
            extreme += int((np.abs(_correlation(permuted, target)) >= abs(observed) - 1e-12).sum())
        found[name] = Association(
            coefficient=float(left @ target / (left @ left)),
            correlation=float(observed),
            p=extreme / (permutations + 1),
        )
    return found


def _correlation(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Of each row (R, P) with the target (P,), both already without what the other distances explain."""
    size = np.sqrt((rows**2).sum(1) * (target**2).sum())
    return np.divide(rows @ target, size, out=np.zeros(len(rows)), where=size > 0)
