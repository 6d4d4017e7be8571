"""Compiled scan behind `analysis.experts.average_precision`: all concepts of a pool from one sort per unit.

Once a unit's texts are sorted, one walk down the ranking serves all concepts: each text adds its row of labels to the
running counts, concepts being the lanes of the processor's vector unit. Concepts with the same labelled texts (all of
a pool's, or those of one half of the sentences) share their ranks and are walked together, on these texts only. Counts
are float32 (exact below 2^24), sums move to float64 every few tie groups. Blocks of units go through threads: the
compiled loops release the interpreter lock.

Shapes:  U units   N texts   C concepts
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from analysis.experts.ranks import compiled, sorted_keys

BLOCK = 64
"""Units per task: their keys (8 bytes x N each) stay in the second-level cache."""
NEGATIVE, POSITIVE = 1, 3
"""Codes of labels, 0 being unlabelled: the lowest bit says labelled, the next one positive."""
FLUSH = 32
"""Tie groups after which float32 sums move to float64: keeps the error of AP near 1e-7."""


@lru_cache(maxsize=1)
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """Kept between calls: starting threads takes as long as a small site. A forked process needs its own."""
    return ThreadPoolExecutor(count)


@compiled
def _select(keys: np.ndarray, places: np.ndarray, chosen: np.ndarray) -> None:
    """Keys of some texts, in order and with their places among these texts; -1 in `places` leaves a text out."""
    for unit in range(keys.shape[0]):
        count = 0
        for key in keys[unit]:
            place = places[key & np.uint64(0xFFFFFFFF)]
            if place >= 0:
                chosen[unit, count] = ((key >> np.uint64(32)) << np.uint64(32)) | np.uint64(place)
                count += 1


# The loops over concepts stand in functions of their own because only then the compiler turns them into vector code.


@compiled
def _add_text(row: np.ndarray, rank: np.float32, hits: np.ndarray, precision: np.ndarray) -> None:
    """An untied text of this rank, every text being labelled for every concept."""
    share = np.float32(1.0) / rank
    for concept in range(hits.shape[0]):
        yes = np.float32(row[concept] >> 1)
        total = hits[concept] + yes
        hits[concept] = total
        precision[concept] += yes * total * share


@compiled
def _add_three_texts(
    one: np.ndarray, two: np.ndarray, three: np.ndarray, rank: np.float32, hits: np.ndarray, precision: np.ndarray
) -> None:
    """Three untied texts from this rank on, as `_add_text` one by one: counts and sums are loaded and stored once."""
    first = np.float32(1.0) / rank
    second = np.float32(1.0) / (rank + np.float32(1.0))
    third = np.float32(1.0) / (rank + np.float32(2.0))
    for concept in range(hits.shape[0]):
        yes = np.float32(one[concept] >> 1)
        total = hits[concept] + yes
        found = precision[concept] + yes * total * first
        yes = np.float32(two[concept] >> 1)
        total = total + yes
        found = found + yes * total * second
        yes = np.float32(three[concept] >> 1)
        total = total + yes
        precision[concept] = found + yes * total * third
        hits[concept] = total


@compiled
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


@compiled
def _count(row: np.ndarray, more: np.ndarray, members: np.ndarray) -> None:
    """One text of a tie group: positives and labelled texts of each concept."""
    for concept in range(more.shape[0]):
        code = row[concept]
        more[concept] += np.float32(code >> 1)
        members[concept] += np.float32(code & 1)


@compiled
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


@compiled
def _flush(sums: np.ndarray, totals: np.ndarray) -> None:
    for concept in range(sums.shape[0]):
        totals[concept] += np.float64(sums[concept])
        sums[concept] = 0


@compiled
def _untied(keys: np.ndarray, first: int) -> bool:
    """Whether three texts from `first` on differ in value from each other and from the next."""
    one, two = keys[first] >> np.uint64(32), keys[first + 1] >> np.uint64(32)
    three, four = keys[first + 2] >> np.uint64(32), keys[first + 3] >> np.uint64(32)
    return bool(one != two and two != three and three != four)


@compiled
def _scan(keys: np.ndarray, labels: np.ndarray, fully_labelled: bool, ap: np.ndarray) -> None:
    """Walk down every unit's ranking, tie group by tie group.

    Args:
        keys: (units, N) keys of `sorted_keys`.
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
            if fully_labelled and groups + 3 <= FLUSH and first + 3 < num_texts and _untied(keys[unit], first):
                one, two, three = keys[unit, first] & low, keys[unit, first + 1] & low, keys[unit, first + 2] & low
                _add_three_texts(labels[one], labels[two], labels[three], np.float32(first + 1), hits, precision)
                first += 3
                groups += 3
                if groups == FLUSH:
                    groups = 0
                    _flush(precision, ap[unit])
                continue
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


@dataclass(frozen=True)
class LabelBlock:
    """Concepts that are walked together."""

    concepts: np.ndarray
    """Their places among all concepts."""
    places: np.ndarray | None
    """For every used text its row in `codes`, -1 for none; None if each has one, in order."""
    codes: np.ndarray
    """(texts, concepts) uint8, 0, NEGATIVE or POSITIVE."""
    fully_labelled: bool
    """Whether every text of the block is labelled for each of its concepts: ranks are then the same for all."""


def scan(
    values: np.ndarray, columns: np.ndarray, blocks: Sequence[LabelBlock], num_concepts: int, num_threads: int
) -> np.ndarray:
    """Sums of precisions at positives (U, C) float64.

    Args:
        values: (U, N) float32 responses.
        columns: the texts that are labelled for any concept.
        blocks: all concepts, each in one block.
    """
    ap = np.empty((len(values), num_concepts))

    def run(first: int) -> None:
        keys = sorted_keys(values[first : first + BLOCK], columns)
        for block in blocks:
            chosen = keys
            if block.places is not None:
                chosen = np.empty((len(keys), len(block.codes)), dtype=np.uint64)
                _select(keys, block.places, chosen)
            sums = np.zeros((len(keys), len(block.concepts)))
            _scan(chosen, block.codes, block.fully_labelled, sums)
            ap[first : first + BLOCK, block.concepts] = sums

    starts = range(0, len(values), BLOCK)
    if num_threads == 1 or len(starts) == 1:
        for first in starts:
            run(first)
    else:
        list(_threads(num_threads, os.getpid()).map(run, starts))
    return ap
