"""Which block of which language is the i-th sample of a run: a pure function of (seed, i).

No generator state, no cursor: a run resumes from its step alone, and the global batch of a step does not depend on how
many devices, workers or accumulated micro-batches share it. Two parts, both counter-based:

*Language.* Sample i takes the language into whose interval of [0, 1) the point u_i = frac(i phi + u_0) falls, phi being
the golden ratio, the interval of language l as long as its probability, u_0 a hash of the seed. Such a Kronecker
sequence is equidistributed with discrepancy O(log n / n), so every stretch of the run holds each language in its share
almost exactly (independent draws would scatter by sqrt(n)). In integers, u_i = (a i + b) mod 2^64, and the number of
samples of a language before i, which is the position in that language's text, is a difference of sums of
floor((a k + b) / m), computed exactly in O(log m) steps without walking through the run.

*Block.* The n-th sample of a language with B blocks reads epoch e = n // B at place n % B of a permutation of the
blocks keyed by (seed, language, e): a Feistel network with cycle walking (Black and Rogaway 2002), O(1) in time and
memory whatever B is. Every block is read once per epoch, and every epoch has its own order.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import numpy as np

# Shapes: N samples   L languages

MODULUS = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / phi, odd."""


class Schedule:
    """The sequence of (language, block) of a run.

    Args:
        probabilities: share of each language; they sum to 1.
        num_blocks: blocks of each language, at least 1.
        seed: another seed shifts the languages and reorders every epoch.
    """

    def __init__(self, probabilities: Mapping[str, float], num_blocks: Mapping[str, int], seed: int) -> None:
        assert probabilities.keys() == num_blocks.keys()
        assert abs(sum(probabilities.values()) - 1) < 1e-9
        self.languages = tuple(sorted(probabilities))
        self.num_blocks = {language: num_blocks[language] for language in self.languages}
        if empty := [language for language, count in self.num_blocks.items() if count < 1]:
            raise ValueError(f"no block of text for {', '.join(empty)}")
        self.seed = seed
        cumulative = np.cumsum([probabilities[language] for language in self.languages])
        self._upper = [min(MODULUS, round(float(value) * MODULUS)) for value in cumulative]
        self._upper[-1] = MODULUS
        self._offset = _key("language", seed)

    def counts(self, index: int) -> dict[str, int]:
        """Samples of each language among the first `index` samples of the run."""
        below = [_count_below(upper, GOLDEN, self._offset, index) for upper in self._upper]
        return {
            language: below[position] - (below[position - 1] if position else 0)
            for position, language in enumerate(self.languages)
        }

    def samples(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Languages (N,) as indices into `languages` and blocks (N,) of samples `start` to `start + count - 1`."""
        index = np.arange(start, start + count, dtype=np.uint64)
        points = index * np.uint64(GOLDEN) + np.uint64(self._offset)  # (N,) modulo 2^64 by overflow
        # the last upper bound is 2^64 itself, which no point reaches
        bounds = np.array(self._upper[:-1], dtype=np.uint64)
        language_index = np.searchsorted(bounds, points, side="right")
        before = self.counts(start)
        order = np.empty(count, dtype=np.int64)  # running number of the sample among those of its language
        size = np.empty(count, dtype=np.int64)
        keys = np.empty((8, count), dtype=np.uint64)
        for position, language in enumerate(self.languages):
            chosen = np.flatnonzero(language_index == position)
            order[chosen] = before[language] + np.arange(len(chosen))
            size[chosen] = self.num_blocks[language]
            epochs = order[chosen] // self.num_blocks[language]
            for epoch in np.unique(epochs):
                keys[:, chosen[epochs == epoch]] = round_keys(_key("block", self.seed, language, int(epoch)))[:, None]
        return language_index, permute(order % size, size, keys)


def permute(index: np.ndarray, size: int | np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Images (N,) of `index` (N,), values in [0, size), under the permutation of [0, size) that `keys` select.

    Args:
        size: one for all, or one for each index (N,).
        keys: of the rounds, (8, 1) for all or (8, N), from `round_keys`.
    """
    sizes = np.broadcast_to(np.asarray(size, dtype=np.uint64), index.shape)
    keys = np.broadcast_to(keys, (len(keys), len(index)))
    bits = np.frexp((sizes - np.uint64(1)).astype(np.float64))[1]  # of the largest index; exact below 2^53
    half_bits = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    masks = (np.uint64(1) << half_bits) - np.uint64(1)
    result = index.astype(np.uint64)
    todo = np.arange(len(index))
    while len(todo):  # the domain of the network has at most 4 x size values: walk on until back inside
        value, shift, mask = result[todo], half_bits[todo], masks[todo]
        left, right = value >> shift, value & mask
        for round_key in keys[:, todo]:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        value = (left << shift) | right
        result[todo] = value
        todo = todo[value >= sizes[todo]]
    return result.astype(np.int64)


@functools.lru_cache(maxsize=1024)
def round_keys(key: int) -> np.ndarray:
    """Keys (8,) of the rounds of the network, from a hash of `key`."""
    digest = hashlib.blake2b(key.to_bytes(8, "little"), digest_size=64, person=b"feistel").digest()
    return np.frombuffer(digest, dtype="<u8")


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every input bit reaches every output bit."""
    value = (value + np.uint64(GOLDEN)).astype(np.uint64)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@functools.lru_cache(maxsize=1024)
def _key(*parts: int | str) -> int:
    """64 bits from a hash of the parts."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def _count_below(bound: int, step: int, offset: int, count: int) -> int:
    """Number of k in [0, count) with (step k + offset) mod 2^64 < bound, exactly, for 0 <= bound <= 2^64.

    x mod m < c is floor(x / m) - floor((x - c) / m) == 1, and 0 otherwise; adding m keeps the second sum non-negative.
    """
    return _floor_sum(count, MODULUS, step, offset) - _floor_sum(count, MODULUS, step, offset + MODULUS - bound) + count


def _floor_sum(count: int, modulus: int, step: int, offset: int) -> int:
    """Sum over k in [0, count) of floor((step k + offset) / modulus), by the Euclidean algorithm, for values >= 0."""
    total = 0
    while count > 0:
        total += count * (count - 1) // 2 * (step // modulus) + count * (offset // modulus)
        step, offset = step % modulus, offset % modulus
        last = step * count + offset
        if last < modulus:
            break
        count, offset = last // modulus, last % modulus
        modulus, step = step, modulus
    return total
