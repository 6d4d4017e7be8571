"""Rank correlation of AP between the halves of the sentences, accumulated site by site.

Do two languages rank the units of a layer alike for the same concept? Spearman's correlation within each site, averaged
over sites with their number of units as weight: differences in level between layers, which all concepts share, cannot
pass for agreement. One half of the sentences ranks the units of one language, the other half those of the other, so no
sentence is seen with its own translation.

Shapes:  U units of one site   G groups (a language and a concept each)
"""

from __future__ import annotations

import numpy as np

from analysis.experts.ranks import average_ranks


class RankCorrelation:
    """Mean within-site Spearman correlation of every group by one half with every group by the other."""

    def __init__(self, num_groups: int) -> None:
        self._weighted = np.zeros((num_groups, num_groups))
        self._num_units = 0
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, one: np.ndarray, other: np.ndarray, *, complete: bool = True) -> None:
        """Add units of one site: scores (..., U) by each half, all leading dimensions together being the groups.

        A group whose scores are all equal correlates with nothing: its correlation here counts as 0.

        Args:
            complete: the site ends with these units. Ranks are those of the whole site, however many parts it comes in.
        """
        self._waiting.append((one, other))
        if not complete:
            return
        first, second = (np.concatenate(parts, axis=-1) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        self._weighted += first.shape[-1] * (_standardised_ranks(first) @ _standardised_ranks(second).T)
        self._num_units += first.shape[-1]

    def result(self) -> np.ndarray:
        """(G, G) in [-1, 1]: rows by the first half, columns by the second."""
        assert self._num_units > 0, "no site was added"
        assert not self._waiting, "the last site is there in part"
        return self._weighted / self._num_units


def _standardised_ranks(scores: np.ndarray) -> np.ndarray:
    """(G, U) ranks of each group with mean 0 and length 1."""
    ranks = average_ranks(scores.reshape(-1, scores.shape[-1]))
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(ranks, axis=1, keepdims=True)
    standardised: np.ndarray = np.divide(ranks, norm, out=np.zeros_like(ranks), where=norm > 0)
    return standardised
