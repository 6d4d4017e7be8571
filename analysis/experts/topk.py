"""Running top-K over units that arrive site by site, with what is to be kept of each candidate.

A candidate is one 64-bit key: the bits of its score above, the complement of its flat id below. Scores are not
negative, so the order of keys is exactly (score descending, flat id ascending), and no tie needs a rule of its own.

Shapes:  G groups (one ranking each)   U units of one update   K kept   n units that enter
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

LAST_ID = np.uint64(0xFFFFFFFF)

Details = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]
"""What to keep of units that enter a ranking: from their groups (n,), ascending, and their places (n,) in the update,
arrays (n, ...) by name."""


class TopUnits:
    """The `k` best units of each of `num_groups` rankings seen so far; read it after at least `k` units."""

    def __init__(self, num_groups: int, k: int) -> None:
        # Places not yet taken: keys that differ, all below that of any unit.
        self._keys = np.tile(np.arange(k, dtype=np.uint64), (num_groups, 1))
        self._least = self._keys[:, :1].copy()
        self._kept: dict[str, np.ndarray] = {}

    @property
    def units(self) -> np.ndarray:
        """Flat ids (G, K) int64, best first."""
        return (LAST_ID - (self._ordered & LAST_ID)).astype(np.int64)

    @property
    def scores(self) -> np.ndarray:
        """Scores (G, K) float32, descending."""
        return (self._ordered >> np.uint64(32)).astype(np.uint32).view(np.float32)

    @property
    def payload(self) -> dict[str, np.ndarray]:
        """What was kept of each unit, (G, K, ...) by name, best first."""
        order = np.argsort(self._keys, axis=1)[:, ::-1]
        return {name: values[np.arange(len(order))[:, None], order] for name, values in self._kept.items()}

    @property
    def _ordered(self) -> np.ndarray:
        return np.sort(self._keys, axis=1)[:, ::-1]

    def update(self, scores: np.ndarray, first: int, describe: Details | None = None) -> None:
        """Let units with flat ids `first`, `first + 1` ... compete by `scores` (G, U) float32, not negative.

        Raises:
            ValueError: more units than there are ids.
        """
        num_groups, k = self._keys.shape
        keys = _make_keys(scores, first)
        group, place = np.nonzero(keys > self._least)
        if not len(group):
            return
        column = np.arange(len(group)) - np.searchsorted(group, group)
        width = int(column.max()) + 1
        rivals = np.zeros((num_groups, k + width), dtype=np.uint64)
        rivals[:, :k] = self._keys
        rivals[group, k + column] = keys[group, place]
        self._least = np.partition(rivals, width, axis=1)[:, width, None]
        enters = keys[group, place] >= self._least[group, 0]
        group, place = group[enters], place[enters]
        leaves = self._keys < self._least  # as many in each group as enter it
        self._keys[leaves] = keys[group, place]
        for name, values in ({} if describe is None else describe(group, place)).items():
            if name not in self._kept:
                self._kept[name] = np.zeros((num_groups, k, *values.shape[1:]), dtype=values.dtype)
            self._kept[name][leaves] = values


def _make_keys(scores: np.ndarray, first: int) -> np.ndarray:
    """(G, U) uint64: score above, complement of the flat id below."""
    num_units = scores.shape[1]
    if first + num_units > int(LAST_ID):
        raise ValueError("more than 2^32 units: flat ids do not fit")
    ids = LAST_ID - np.arange(first, first + num_units, dtype=np.uint64)
    bits = np.ascontiguousarray(scores, dtype=np.float32).view(np.uint32).astype(np.uint64)
    keys: np.ndarray = (bits << np.uint64(32)) | ids
    return keys
