"""Does the language fade in the middle of the network and stay at its ends? One number a step, paired over sentences.

D = accuracy in the middle third of the blocks - the larger of the accuracies of embeddings and last block: below 0 if
the middle knows less about the language than both ends. Counts are kept by sentence key, so that two steps, which are
measured on the same sentences, compare key by key.

Shapes:  Y layers (embeddings first)   S seeds   N sampled tokens   G keys   R bootstrap draws
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix

from analysis.extraction.states import TokenSample
from analysis.statistics import draw_again

MINIMUM_BLOCKS = 3
_COLUMNS = ("embedding", "middle", "last", "total")


@dataclass(frozen=True)
class DipCounts:
    """Right answers by sentence key, over all seeds; all arrays are (G,) float64."""

    keys: tuple[str, ...]
    embedding: np.ndarray
    middle: np.ndarray
    """Mean over the blocks of the middle third."""
    last: np.ndarray
    total: np.ndarray
    """Test tokens."""

    def to_arrow(self) -> pa.Table:
        """A row a key, the columns those of this class."""
        return pa.table({"key": self.keys, **{name: getattr(self, name) for name in _COLUMNS}})

    @classmethod
    def from_arrow(cls, table: pa.Table) -> DipCounts:
        """The counts of a stored attachment."""
        arrays = {name: table.column(name).to_numpy() for name in _COLUMNS}
        return cls(tuple(table.column("key").to_pylist()), **arrays)


class Estimate(NamedTuple):
    """A value with its 95 % interval from a bootstrap over keys."""

    value: float
    low: float
    high: float


def middle_third(num_blocks: int) -> range:
    """Blocks whose centre lies in the middle third of the network; needs `MINIMUM_BLOCKS`."""
    inside = [block for block in range(num_blocks) if num_blocks <= 3 * block + 1.5 < 2 * num_blocks]
    return range(inside[0], inside[-1] + 1)


def count_dip(correct: np.ndarray, mask: np.ndarray, sample: TokenSample) -> DipCounts:
    """Counts from right answers (Y, S, N) on the tokens of `mask` (S, N)."""
    keyed = csr_matrix((np.ones(len(sample)), (np.arange(len(sample)), sample.key)))
    hits = np.stack([(layer * mask).sum(axis=0) @ keyed for layer in correct])  # (Y, G)
    middle = middle_third(len(correct) - 1)
    inner = hits[1 + middle.start : 1 + middle.stop].mean(axis=0)
    return DipCounts(sample.key_names, hits[0], inner, hits[-1], mask.sum(axis=0) @ keyed)


def measure_dip(counts: DipCounts) -> Estimate:
    """D of one step."""
    ones, drawn = _weights(len(counts.keys))
    return _estimate(_dip(counts, ones), _dip(counts, drawn))


def dip_change(before: DipCounts, after: DipCounts) -> Estimate:
    """D of `after` minus D of `before`, on the same draws of the keys that both have.

    Raises:
        ValueError: no key is in both.
    """
    common = sorted(set(before.keys) & set(after.keys))
    if not common:
        raise ValueError("the two steps were measured on different sentences: no key is in both")
    one, other = (_restrict(counts, common) for counts in (before, after))
    ones, drawn = _weights(len(common))
    return _estimate(_dip(other, ones) - _dip(one, ones), _dip(other, drawn) - _dip(one, drawn))


def _dip(counts: DipCounts, weights: np.ndarray) -> np.ndarray:
    """D for each row of weights (R, G) of the keys, (R,)."""
    total = np.maximum(weights @ counts.total, 1e-9)
    middle, embedding, last = (weights @ one / total for one in (counts.middle, counts.embedding, counts.last))
    dip: np.ndarray = middle - np.maximum(embedding, last)
    return dip


def _restrict(counts: DipCounts, keys: list[str]) -> DipCounts:
    place = {key: index for index, key in enumerate(counts.keys)}
    index = np.array([place[key] for key in keys])
    arrays = {name: getattr(counts, name)[index] for name in _COLUMNS}
    return DipCounts(tuple(keys), **arrays)


def _weights(num_keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Every key once, (1, G), and the draws of the bootstrap, (R, G)."""
    return np.ones((1, num_keys)), draw_again(num_keys).astype(np.float64)


def _estimate(value: np.ndarray, draws: np.ndarray) -> Estimate:
    # The larger of two ends is too large by their noise, in a draw once more than in the data: so the interval is the
    # draws' mirror image (basic bootstrap), which takes that off. Percentiles saw a dip in 9 of 100 level networks.
    low, high = 2 * value[0] - np.quantile(draws, [0.975, 0.025])
    return Estimate(float(value[0]), float(low), float(high))
