"""Compiled scan behind `analysis.expertise`: all concepts of a pool from one sort per unit.

AP is a sum over the sorted texts in which only texts labelled for a concept have a term, so once a unit's texts are
sorted, every labelled text touches its concepts' running counts once, whatever the number of concepts. Blocks of units
go through threads: NumPy's sort and the compiled loops release the interpreter lock.

Shapes:  U units   N texts   C concepts   E labelled (text, concept) pairs
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

BLOCK = 64
"""Units per task: their keys (8 bytes x N each) stay in the second-level cache."""


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile, keeping the machine code on disk where some cache folder is writable."""
    options = {"nogil": True, "fastmath": False, "boundscheck": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@_compiled
def _pack(values: np.ndarray, keys: np.ndarray) -> None:
    """Keys whose ascending order is descending value; the text's index stands in the low 32 bits.

    The bits of a float32 are ordered like the float once negative numbers are inverted; adding 0.0 makes -0.0 equal
    to 0.0.
    """
    for unit in range(values.shape[0]):
        bits = (values[unit] + np.float32(0.0)).view(np.uint32)
        for text in range(bits.shape[0]):
            key = bits[text]
            if key >> np.uint32(31) == 0:
                key = ~(key | np.uint32(0x80000000))
            keys[unit, text] = (np.uint64(key) << np.uint64(32)) | np.uint64(text)


@_compiled
def _scan(
    keys: np.ndarray,
    starts: np.ndarray,
    positives: np.ndarray,
    negative_starts: np.ndarray | None,
    negatives: np.ndarray | None,
    inverse: np.ndarray,
    ap: np.ndarray,
    above: np.ndarray | None,
) -> None:
    """Walk down every unit's ranking, tie group by tie group; see `scan` for the arguments.

    Branches on None are removed by the compiler, so the usual case (AP alone, all others negative) pays for nothing.
    """
    num_units, num_texts = keys.shape
    num_concepts = ap.shape[0]
    low = np.uint64(0xFFFFFFFF)
    sums = np.zeros((num_concepts, 2))  # positives so far, sum of precisions
    pairs = np.zeros(num_concepts)  # (positive, negative) pairs with the negative above
    seen = np.zeros(num_concepts, dtype=np.int64)  # listed negatives so far
    tied = np.zeros((num_concepts, 2))  # positives and listed negatives in the present tie group
    for unit in range(num_units):
        sums[:] = 0.0
        pairs[:] = 0.0
        seen[:] = 0
        first = 0
        while first < num_texts:
            end = first + 1
            key = keys[unit, first] >> np.uint64(32)
            while end < num_texts and keys[unit, end] >> np.uint64(32) == key:
                end += 1
            if negative_starts is not None:
                for place in range(first, end):
                    text = np.int64(keys[unit, place] & low)
                    for entry in range(negative_starts[text], negative_starts[text + 1]):
                        seen[negatives[entry]] += 1
                        if above is not None and end > first + 1:
                            tied[negatives[entry], 1] += 1.0
            if end == first + 1:
                text = np.int64(keys[unit, first] & low)
                for entry in range(starts[text], starts[text + 1]):
                    concept = positives[entry]
                    hits = sums[concept, 0] + 1.0
                    sums[concept, 0] = hits
                    if negative_starts is None:
                        sums[concept, 1] += hits * inverse[end]
                    else:
                        sums[concept, 1] += hits / (hits + seen[concept])
                    if above is not None:
                        if negative_starts is None:
                            pairs[concept] += end - hits
                        else:
                            pairs[concept] += seen[concept]
            else:
                for place in range(first, end):
                    text = np.int64(keys[unit, place] & low)
                    for entry in range(starts[text], starts[text + 1]):
                        tied[positives[entry], 0] += 1.0
                for place in range(first, end):
                    text = np.int64(keys[unit, place] & low)
                    for entry in range(starts[text], starts[text + 1]):
                        concept = positives[entry]
                        more = tied[concept, 0]
                        if more > 0.0:
                            hits = sums[concept, 0] + more
                            sums[concept, 0] = hits
                            if negative_starts is None:
                                sums[concept, 1] += more * hits * inverse[end]
                                half = 0.5 * (end - first - more)
                                until = end - hits
                            else:
                                sums[concept, 1] += more * hits / (hits + seen[concept])
                                half = 0.5 * tied[concept, 1]
                                until = np.float64(seen[concept])
                            if above is not None:
                                pairs[concept] += more * (until - half)
                            tied[concept, 0] = 0.0
                if negative_starts is not None and above is not None:
                    for place in range(first, end):
                        text = np.int64(keys[unit, place] & low)
                        for entry in range(negative_starts[text], negative_starts[text + 1]):
                            tied[negatives[entry], 1] = 0.0
            first = end
        for concept in range(num_concepts):
            ap[concept, unit] = sums[concept, 1]
            if above is not None:
                above[concept, unit] = pairs[concept]


def scan(
    values: np.ndarray,
    positives: tuple[np.ndarray, np.ndarray],
    negatives: tuple[np.ndarray, np.ndarray] | None,
    num_concepts: int,
    *,
    count_above: bool,
    num_threads: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Sums of precisions at positives and counts of negatives above positives (ties half), both (C, U) float64.

    Args:
        values: (U, N) float32 responses.
        positives: by text, as (starts, concepts): those of text t are `concepts[starts[t] : starts[t + 1]]`.
        negatives: the same; None if all texts that are not positives are negatives.
        count_above: whether the second result is wanted, else it is None.
    """
    num_units, num_texts = values.shape
    ap = np.empty((num_concepts, num_units))
    above = np.empty((num_concepts, num_units)) if count_above else None
    inverse = np.zeros(num_texts + 1)
    inverse[1:] = 1.0 / np.arange(1, num_texts + 1)
    negative_starts, negative_concepts = negatives or (None, None)

    def run(first: int) -> None:
        block = np.ascontiguousarray(values[first : first + BLOCK])
        keys = np.empty(block.shape, dtype=np.uint64)
        _pack(block, keys)
        keys.sort(axis=1)
        part = (slice(None), slice(first, first + BLOCK))
        _scan(
            keys,
            *positives,
            negative_starts,
            negative_concepts,
            inverse,
            ap[part],
            above[part] if above is not None else None,
        )

    blocks = range(0, num_units, BLOCK)
    if num_threads == 1 or len(blocks) == 1:
        for first in blocks:
            run(first)
    else:
        with ThreadPoolExecutor(num_threads) as threads:
            list(threads.map(run, blocks))
    return ap, above
