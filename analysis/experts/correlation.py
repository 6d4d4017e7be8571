"""Rank correlation of AP between languages and concepts, accumulated site by site.

Do two languages rank the units of a layer alike for the same concept? Spearman's correlation within each site, averaged
over sites with their number of units as weight: differences in level between layers, which all concepts share, cannot
pass for agreement.

Shapes:  U units of one site   G groups (a language and a concept each)
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


class RankCorrelation:
    """Mean within-site Spearman correlation between all pairs of groups."""

    def __init__(self, num_groups: int) -> None:
        self._weighted = np.zeros((num_groups, num_groups))
        self._num_units = 0

    def update(self, scores: np.ndarray) -> None:
        """Add one site: `scores` (..., U), all leading dimensions together being the groups.

        A group whose scores are all equal correlates with nothing: its correlation here counts as 0.
        """
        num_units = scores.shape[-1]
        ranks = rankdata(scores.reshape(-1, num_units), axis=1)
        ranks -= ranks.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(ranks, axis=1, keepdims=True)
        unit = np.divide(ranks, norm, out=np.zeros_like(ranks), where=norm > 0)
        self._weighted += num_units * (unit @ unit.T)
        self._num_units += num_units

    def result(self) -> np.ndarray:
        """(G, G) in [-1, 1]."""
        assert self._num_units > 0, "no site was added"
        return self._weighted / self._num_units
