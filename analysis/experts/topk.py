"""Running top-K over units that arrive site by site, with what is to be kept of each candidate.

A candidate is one 64-bit key: the bits of its score above, the complement of its flat id below. Scores are not
negative, so the order of keys is exactly (score descending, flat id ascending), and no tie needs a rule of its own.

Shapes:  G groups (one ranking each)   U units of one update   K kept
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

LAST_ID = np.uint64(0xFFFFFFFF)


class TopUnits:
    """The `k` best units of each of `num_groups` rankings seen so far."""

    def __init__(self, num_groups: int, k: int) -> None:
        self.k = k
        self._keys = np.zeros((num_groups, k), dtype=np.uint64)
        self.payload: dict[str, np.ndarray] = {}
        """What was kept of each unit, (G, K, ...) by name."""

    @property
    def units(self) -> np.ndarray:
        """Flat ids (G, K) int64, best first; call after at least K units were seen."""
        return (LAST_ID - (self._keys & LAST_ID)).astype(np.int64)

    @property
    def scores(self) -> np.ndarray:
        """Scores (G, K) float32, descending."""
        return (self._keys >> np.uint64(32)).astype(np.uint32).view(np.float32)

    def update(
        self, scores: np.ndarray, first: int, describe: Callable[[int, np.ndarray], Mapping[str, np.ndarray]]
    ) -> None:
        """Let units with flat ids `first`, `first + 1` ... compete.

        Args:
            scores: (G, U) float32, not negative.
            describe: called with a group and the places (n,) in this update of units that enter its ranking; returns
                what to keep of them, arrays (n, ...) by name.
        """
        keys = _make_keys(scores, first)
        entering = keys > self._keys[:, -1:]
        for group in np.flatnonzero(entering.any(axis=1)).tolist():
            places = np.flatnonzero(entering[group])
            if places.size > self.k:
                places = places[np.argpartition(keys[group, places], -self.k)[-self.k :]]
            merged = np.concatenate([self._keys[group], keys[group, places]])
            order = np.argsort(merged)[: -self.k - 1 : -1]
            self._keys[group] = merged[order]
            self._keep(group, order, places, describe)

    def _keep(
        self,
        group: int,
        order: np.ndarray,
        places: np.ndarray,
        describe: Callable[[int, np.ndarray], Mapping[str, np.ndarray]],
    ) -> None:
        new = order >= self.k
        for name, values in describe(group, places[order[new] - self.k]).items():
            if name not in self.payload:
                self.payload[name] = np.zeros((len(self._keys), self.k, *values.shape[1:]), dtype=values.dtype)
            kept = self.payload[name][group]
            reordered = np.empty_like(kept)
            reordered[~new] = kept[order[~new]]
            reordered[new] = values
            self.payload[name][group] = reordered


class DeepTop:
    """The `k` best units of each ranking where `k` is large and nothing is kept of them but the order."""

    def __init__(self, num_groups: int, k: int) -> None:
        self.k = k
        self._keys = np.zeros((num_groups, k), dtype=np.uint64)

    def update(self, scores: np.ndarray, first: int) -> None:
        """Let units with flat ids `first`, `first + 1` ... compete by `scores` (G, U)."""
        keys = _make_keys(scores, first)
        for group, row in enumerate(keys):
            entering = row[row > self._keys[group].min()]
            if entering.size:
                merged = np.concatenate([self._keys[group], entering])
                self._keys[group] = np.partition(merged, entering.size)[entering.size :]

    @property
    def units(self) -> np.ndarray:
        """Flat ids (G, K) int64, best first."""
        return (LAST_ID - (np.sort(self._keys, axis=1)[:, ::-1] & LAST_ID)).astype(np.int64)


def _make_keys(scores: np.ndarray, first: int) -> np.ndarray:
    """(G, U) uint64: score above, complement of the flat id below."""
    num_units = scores.shape[1]
    if first + num_units > int(LAST_ID):
        raise ValueError("more than 2^32 units: flat ids do not fit")
    ids = LAST_ID - np.arange(first, first + num_units, dtype=np.uint64)
    bits = np.ascontiguousarray(scores, dtype=np.float32).view(np.uint32).astype(np.uint64)
    keys: np.ndarray = (bits << np.uint64(32)) | ids
    return keys
