"""Compiled scan behind `analysis.experts.average_precision`: all concepts of a pool from one sort per unit.

Once a unit's texts are sorted, one walk down the ranking serves all concepts: each text adds its row of labels to the
running counts, concepts being the lanes of the processor's vector unit. Counts are float32 (exact below 2^24), sums
move to float64 every few tie groups. Blocks of units go through threads: NumPy's sort and the compiled loops release
the interpreter lock.

Shapes:  U units   N texts   C concepts
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numba
import numpy as np

BLOCK = 64
"""Units per task: their keys (8 bytes x N each) stay in the second-level cache."""
NEGATIVE, POSITIVE = 1, 3
"""Codes of labels, 0 being unlabelled: the lowest bit says labelled, the next one positive."""
FLUSH = 32
"""Tie groups after which float32 sums move to float64: keeps the error of AP near 1e-7."""


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile, keeping the machine code on disk where some cache folder is writable.

    Python's error model would test every division for zero, and loops with such tests are not vectorised.
    """
    try:
        return numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:
        return numba.njit(function, nogil=True, error_model="numpy")


@lru_cache(maxsize=1)
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """Kept between calls: starting threads takes as long as a small site. A forked process needs its own."""
    return ThreadPoolExecutor(count)


@_compiled
def _pack(values: np.ndarray, columns: np.ndarray, keys: np.ndarray) -> None:
    """Keys of the used texts whose ascending order is descending value; the low 32 bits hold the text's place.

    The bits of a float32 are ordered like the float once negative numbers are inverted; adding 0.0 makes -0.0 equal
    to 0.0.
    """
    for unit in range(values.shape[0]):
        bits = (values[unit] + np.float32(0.0)).view(np.uint32)
        for place in range(columns.shape[0]):
            key = bits[columns[place]]
            if key >> np.uint32(31) == 0:
                key = ~(key | np.uint32(0x80000000))
            keys[unit, place] = (np.uint64(key) << np.uint64(32)) | np.uint64(place)


# The loops over concepts stand in functions of their own because only then the compiler turns them into vector code.


@_compiled
def _add_text(row: np.ndarray, rank: np.float32, hits: np.ndarray, precision: np.ndarray) -> None:
    """An untied text of this rank, every text being labelled for every concept."""
    share = np.float32(1.0) / rank
    for concept in range(hits.shape[0]):
        yes = np.float32(row[concept] >> 1)
        total = hits[concept] + yes
        hits[concept] = total
        precision[concept] += yes * total * share


@_compiled
def _add_labelled_text(row: np.ndarray, seen: np.ndarray, hits: np.ndarray, precision: np.ndarray) -> None:
    """An untied text; the rank is among the labelled texts of each concept, counted by `seen`."""
    for concept in range(hits.shape[0]):
        code = row[concept]
        yes = np.float32(code >> 1)
        rank = seen[concept] + np.float32(code & 1)
        total = hits[concept] + yes
        seen[concept] = rank
        hits[concept] = total
        precision[concept] += yes * total / max(rank, np.float32(1.0))


@_compiled
def _count(row: np.ndarray, more: np.ndarray, members: np.ndarray) -> None:
    """One text of a tie group: positives and labelled texts of each concept."""
    for concept in range(more.shape[0]):
        code = row[concept]
        more[concept] += np.float32(code >> 1)
        members[concept] += np.float32(code & 1)


@_compiled
def _add_group(
    more: np.ndarray, members: np.ndarray, seen: np.ndarray, hits: np.ndarray, precision: np.ndarray
) -> None:
    """A whole tie group: its texts share the precision at its end."""
    for concept in range(hits.shape[0]):
        yes = more[concept]
        rank = seen[concept] + members[concept]
        total = hits[concept] + yes
        seen[concept] = rank
        hits[concept] = total
        precision[concept] += yes * total / max(rank, np.float32(1.0))


@_compiled
def _flush(sums: np.ndarray, totals: np.ndarray) -> None:
    for concept in range(sums.shape[0]):
        totals[concept] += np.float64(sums[concept])
        sums[concept] = 0


@_compiled
def _scan(keys: np.ndarray, labels: np.ndarray, fully_labelled: bool, ap: np.ndarray) -> None:
    """Walk down every unit's ranking, tie group by tie group.

    Args:
        keys: (units, N) sorted keys of `_pack`.
        labels: (N, C) uint8 codes of labels.
        fully_labelled: every text is labelled for every concept.
        ap: (units, C) float64 zeros, receives the sum of precisions at positives.
    """
    num_units, num_texts = keys.shape
    num_concepts = labels.shape[1]
    low = np.uint64(0xFFFFFFFF)
    hits = np.zeros(num_concepts, dtype=np.float32)  # positives so far
    seen = np.zeros(num_concepts, dtype=np.float32)  # labelled texts so far
    more = np.zeros(num_concepts, dtype=np.float32)  # positives in the tie group
    members = np.zeros(num_concepts, dtype=np.float32)  # labelled texts in the tie group
    precision = np.zeros(num_concepts, dtype=np.float32)
    for unit in range(num_units):
        hits[:] = 0
        seen[:] = 0
        first = 0
        groups = 0
        while first < num_texts:
            end = first + 1
            key = keys[unit, first] >> np.uint64(32)
            while end < num_texts and keys[unit, end] >> np.uint64(32) == key:
                end += 1
            if end > first + 1:
                more[:] = 0
                members[:] = 0
                for place in range(first, end):
                    _count(labels[keys[unit, place] & low], more, members)
                if fully_labelled:
                    seen[:] = np.float32(first)
                _add_group(more, members, seen, hits, precision)
            elif fully_labelled:
                _add_text(labels[keys[unit, first] & low], np.float32(end), hits, precision)
            else:
                _add_labelled_text(labels[keys[unit, first] & low], seen, hits, precision)
            first = end
            groups += 1
            if groups == FLUSH or first == num_texts:
                groups = 0
                _flush(precision, ap[unit])


@_compiled
def _ranks_of(keys: np.ndarray, ranks: np.ndarray) -> None:
    """Ranks (rows, N) from sorted keys of `_pack`; a tie group shares the mean of its places."""
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
    keys = np.empty(scores.shape, dtype=np.uint64)
    _pack(np.ascontiguousarray(scores, dtype=np.float32), np.arange(scores.shape[1]), keys)
    keys.sort(axis=1)
    ranks = np.empty(scores.shape)
    _ranks_of(keys, ranks)
    return ranks


@_compiled
def auroc(values: np.ndarray, yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    """Probability (U,) float32 that a response (U, N) to a positive text exceeds one to a negative, ties half."""
    area = np.empty(values.shape[0], dtype=np.float32)
    pairs = np.float64(yes.shape[0] * no.shape[0])
    for unit in range(values.shape[0]):
        negatives = np.sort(values[unit][no])
        doubled = 0
        for value in values[unit][yes]:
            doubled += np.searchsorted(negatives, value) + np.searchsorted(negatives, value, side="right")
        area[unit] = 1.0 - (pairs - doubled / 2) / pairs
    return area


@_compiled
def percentiles(values: np.ndarray, texts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Percentiles (len(shares), U) float32 of the responses (U, N) to some texts, between neighbours as NumPy does."""
    found = np.empty((shares.shape[0], values.shape[0]), dtype=np.float32)
    last = texts.shape[0] - 1
    for unit in range(values.shape[0]):
        ordered = np.sort(values[unit][texts])
        for number in range(shares.shape[0]):
            at = shares[number] * last
            below = int(at)
            low, high, part = ordered[below], ordered[min(below + 1, last)], at - below
            rise = np.float64(high - low)
            found[number, unit] = low + rise * part if part < 0.5 else high - rise * (1.0 - part)
    return found


def scan(
    values: np.ndarray, columns: np.ndarray, labels: np.ndarray, *, fully_labelled: bool, num_threads: int
) -> np.ndarray:
    """Sums of precisions at positives (U, C) float64.

    Args:
        values: (U, N) float32 responses.
        columns: the texts that are labelled for any concept.
        labels: (len(columns), C) uint8, 0, NEGATIVE or POSITIVE.
        fully_labelled: every one of these texts is labelled for every concept.
    """
    ap = np.zeros((len(values), labels.shape[1]))

    def run(first: int) -> None:
        block = values[first : first + BLOCK]
        keys = np.empty((len(block), len(columns)), dtype=np.uint64)
        _pack(block, columns, keys)
        keys.sort(axis=1)
        _scan(keys, labels, fully_labelled, ap[first : first + BLOCK])

    blocks = range(0, len(values), BLOCK)
    if num_threads == 1 or len(blocks) == 1:
        for first in blocks:
            run(first)
    else:
        list(_threads(num_threads, os.getpid()).map(run, blocks))
    return ap
