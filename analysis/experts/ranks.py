"""Compiled order statistics of responses: sorted keys, ranks, AUROC, percentiles.

A key holds the value above and the place below, so that sorting it sorts both. Radix sort, because 1,500 64-bit keys
take NumPy three times as long, and because it needs no Python between units: threads run side by side.

Shapes:  U units   N texts   G groups
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile, keeping the machine code on disk where some cache folder is writable.

    Python's error model would test every division for zero, and loops with such tests are not vectorised.
    """
    try:
        return numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:
        return numba.njit(function, nogil=True, error_model="numpy")


@compiled
def _sort(values: np.ndarray, columns: np.ndarray, digit: int, keys: np.ndarray, spare: np.ndarray) -> None:
    """Sorted keys of the used texts: ascending is descending value, then place; the low 32 bits hold the place.

    The bits of a float32 are ordered like the float once negative numbers are inverted; adding 0.0 makes -0.0 equal
    to 0.0. Least digits first, which keeps the order of equal ones, so the places need no digit of their own.

    Args:
        digit: bits that one pass sorts by.
        keys: (units, N), the result.
        spare: (N,) to work in.
    """
    size, last = columns.shape[0], (1 << digit) - 1
    passes = (31 + digit) // digit
    counts = np.zeros((passes, last + 1), dtype=np.int64)
    for unit in range(values.shape[0]):
        bits = (values[unit] + np.float32(0.0)).view(np.int32)
        counts[:] = 0
        one, other = keys[unit], spare
        for place in range(size):
            value = bits[columns[place]]
            key = np.uint32(value ^ (np.int32(~(value >> 31)) & np.int32(0x7FFFFFFF)))
            one[place] = (np.uint64(key) << np.uint64(32)) | np.uint64(place)
            for number in range(passes):
                counts[number, (key >> np.uint32(digit * number)) & np.uint32(last)] += 1
        for number in range(passes):
            total = 0
            for value in range(last + 1):
                counts[number, value], total = total, total + counts[number, value]
            shift = np.uint64(32 + digit * number)
            for place in range(size):
                key = one[place]
                where = (key >> shift) & np.uint64(last)
                other[counts[number, where]] = key
                counts[number, where] += 1
            one, other = other, one
        if passes % 2:
            keys[unit] = spare


def sorted_keys(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(U, len(columns)) keys of `_sort`."""
    keys = np.empty((len(values), len(columns)), dtype=np.uint64)
    _sort(values, columns, 8 if len(columns) < 1000 else 11, keys, np.empty(len(columns), dtype=np.uint64))
    return keys


@compiled
def _ranks_of(keys: np.ndarray, ranks: np.ndarray) -> None:
    """Ranks (rows, N) from keys of `_sort`; a tie group shares the mean of its places."""
    for row in range(keys.shape[0]):
        first = 0
        while first < keys.shape[1]:
            end = first + 1
            key = keys[row, first] >> np.uint64(32)
            while end < keys.shape[1] and keys[row, end] >> np.uint64(32) == key:
                end += 1
            for place in range(first, end):
                ranks[row, keys[row, place] & np.uint64(0xFFFFFFFF)] = (first + end + 1) / 2
            first = end


def average_ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks (G, U) float64 within each row of scores (G, U) float32, the largest score first; ties share their mean."""
    keys = sorted_keys(np.ascontiguousarray(scores, dtype=np.float32), np.arange(scores.shape[1]))
    ranks = np.empty(scores.shape)
    _ranks_of(keys, ranks)
    return ranks


@compiled
def auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Probability (U,) float32 that a response to a positive text exceeds one to a negative, ties half, from the
    responses to each, (U, P) and (U, M), ascending in every row."""
    area = np.empty(positives.shape[0], dtype=np.float32)
    pairs = np.float64(positives.shape[1] * negatives.shape[1])
    for unit in range(positives.shape[0]):
        below, up_to, doubled = 0, 0, 0
        for value in positives[unit]:
            while below < negatives.shape[1] and negatives[unit, below] < value:
                below += 1
            up_to = max(below, up_to)
            while up_to < negatives.shape[1] and negatives[unit, up_to] <= value:
                up_to += 1
            doubled += below + up_to
        area[unit] = 1.0 - (pairs - doubled / 2) / pairs
    return area


def percentile(ordered: np.ndarray, share: float) -> np.ndarray:
    """A percentile (U,) float32 of responses (U, P), ascending in every row; between neighbours as NumPy does it."""
    at = share * (ordered.shape[1] - 1)
    below = int(at)
    low, high, part = ordered[:, below], ordered[:, min(below + 1, ordered.shape[1] - 1)], at - below
    rise = (high - low).astype(np.float64)
    found: np.ndarray = low + rise * part if part < 0.5 else high - rise * (1.0 - part)
    return found.astype(np.float32)
