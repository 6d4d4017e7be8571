"""Compiled scan behind `analysis.experts.average_precision`: all concepts of a pool from one sort per unit.

Once a unit's texts are sorted, one walk down the ranking serves all concepts. Concepts with the same labelled texts
(all of a pool's, or those of one half of the sentences) share their ranks: they are the lanes of the processor's vector
unit, and each text adds its row of labels to the running counts. Of concepts with labelled texts of their own most do
not know a text at all, so a text has lists: the sets of labelled texts that it is in, and the concepts that it is a
positive of. Where many know it, it has a row, and every concept counts its rank by itself. Counts are exact, sums are
float32 and move to float64 every few tie groups. Blocks of units go through threads: the compiled loops release the
interpreter lock.

Shapes:  U units   N texts   C concepts   S sets of labelled texts
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
LISTED = 0.125
"""Share of texts in a set below which a list of its texts is shorter work than a row for the vector unit."""
CROWDED = 0.1
"""Share of positives among texts and concepts above which rows take less time than lists (measured on AVX-512)."""
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
# They get whole arrays and indices: the runtime counts references to a row made by slicing, which takes as long.


@compiled
def _add_text(positive: np.ndarray, text: int, rank: np.float32, hits: np.ndarray, precision: np.ndarray) -> None:
    """An untied text of this rank."""
    share = np.float32(1.0) / rank
    for concept in range(hits.shape[0]):
        yes = np.float32(positive[text, concept])
        total = hits[concept] + yes
        hits[concept] = total
        precision[concept] += yes * total * share


@compiled
def _add_three_texts(
    positive: np.ndarray, one: int, two: int, three: int, rank: np.float32, hits: np.ndarray, precision: np.ndarray
) -> None:
    """Three untied texts from this rank on, as `_add_text` one by one: counts and sums are loaded and stored once."""
    first = np.float32(1.0) / rank
    second = np.float32(1.0) / (rank + np.float32(1.0))
    third = np.float32(1.0) / (rank + np.float32(2.0))
    for concept in range(hits.shape[0]):
        yes = np.float32(positive[one, concept])
        total = hits[concept] + yes
        found = precision[concept] + yes * total * first
        yes = np.float32(positive[two, concept])
        total = total + yes
        found = found + yes * total * second
        yes = np.float32(positive[three, concept])
        total = total + yes
        precision[concept] = found + yes * total * third
        hits[concept] = total


@compiled
def _count(positive: np.ndarray, text: int, more: np.ndarray) -> None:
    """One text of a tie group."""
    for concept in range(more.shape[0]):
        more[concept] += np.float32(positive[text, concept])


@compiled
def _add_group(more: np.ndarray, rank: np.float32, hits: np.ndarray, precision: np.ndarray) -> None:
    """A whole tie group: its texts share the precision at its end, this rank."""
    for concept in range(hits.shape[0]):
        yes = more[concept]
        total = hits[concept] + yes
        more[concept] = 0
        hits[concept] = total
        precision[concept] += yes * total / rank


@compiled
def _flush(sums: np.ndarray, totals: np.ndarray, unit: int) -> None:
    for concept in range(sums.shape[0]):
        totals[unit, concept] += np.float64(sums[concept])
        sums[concept] = 0


@compiled
def _group_end(keys: np.ndarray, unit: int, first: int) -> int:
    """Where the tie group ends that begins at `first`."""
    end, value = first + 1, keys[unit, first] >> np.uint64(32)
    while end < keys.shape[1] and keys[unit, end] >> np.uint64(32) == value:
        end += 1
    return end


@compiled
def _untied(keys: np.ndarray, unit: int, first: int) -> bool:
    """Whether three texts from `first` on differ in value from each other and from the next."""
    one, two = keys[unit, first] >> np.uint64(32), keys[unit, first + 1] >> np.uint64(32)
    three, four = keys[unit, first + 2] >> np.uint64(32), keys[unit, first + 3] >> np.uint64(32)
    return bool(one != two and two != three and three != four)


@compiled
def _scan_shared(keys: np.ndarray, positive: np.ndarray, sums: np.ndarray) -> None:
    """Walk down every unit's ranking, tie group by tie group, where every text is labelled for every concept.

    Args:
        keys: (units, N) keys of `sorted_keys`.
        positive: (N, C) uint8.
        sums: (units, C) float64 zeros, receives the sum of precisions at positives.
    """
    num_units, num_texts = keys.shape
    num_concepts = positive.shape[1]
    low = np.uint64(0xFFFFFFFF)
    hits = np.zeros(num_concepts, dtype=np.float32)  # positives so far
    more = np.zeros(num_concepts, dtype=np.float32)  # positives in the tie group
    precision = np.zeros(num_concepts, dtype=np.float32)
    for unit in range(num_units):
        hits[:] = 0
        first = 0
        groups = 0
        while first < num_texts:
            if groups + 3 <= FLUSH and first + 3 < num_texts and _untied(keys, unit, first):
                one, two, three = keys[unit, first] & low, keys[unit, first + 1] & low, keys[unit, first + 2] & low
                _add_three_texts(positive, one, two, three, np.float32(first + 1), hits, precision)
                first += 3
                groups += 3
            else:
                end = _group_end(keys, unit, first)
                if end == first + 1:
                    _add_text(positive, keys[unit, first] & low, np.float32(end), hits, precision)
                else:
                    for place in range(first, end):
                        _count(positive, keys[unit, place] & low, more)
                    _add_group(more, np.float32(end), hits, precision)
                first = end
                groups += 1
            if groups == FLUSH or first == num_texts:
                groups = 0
                _flush(precision, sums, unit)


@compiled
def _see(labelled: np.ndarray, text: int, seen: np.ndarray) -> None:
    for one in range(seen.shape[0]):
        seen[one] += labelled[text, one]


@compiled
def _scan_own(
    keys: np.ndarray,
    labelled: np.ndarray,
    set_starts: np.ndarray,
    sets: np.ndarray,
    concept_starts: np.ndarray,
    concepts: np.ndarray,
    set_of: np.ndarray,
    sums: np.ndarray,
) -> None:
    """As `_scan_shared` for concepts with labelled texts of their own, see `OwnTexts`."""
    low = np.uint64(0xFFFFFFFF)
    seen = np.zeros(labelled.shape[1], dtype=np.int32)  # labelled texts so far, of each set
    hits = np.zeros(set_of.shape[0], dtype=np.int32)  # positives so far
    more = np.zeros(set_of.shape[0], dtype=np.int32)  # positives in the tie group
    precision = np.zeros(set_of.shape[0], dtype=np.float32)
    for unit in range(keys.shape[0]):
        seen[:] = 0
        hits[:] = 0
        first = 0
        groups = 0
        while first < keys.shape[1]:
            end = _group_end(keys, unit, first)
            for place in range(first, end):
                text = keys[unit, place] & low
                if sets.shape[0] == 0:
                    _see(labelled, text, seen)
                else:
                    for entry in range(set_starts[text], set_starts[text + 1]):
                        seen[sets[entry]] += 1
                for entry in range(concept_starts[text], concept_starts[text + 1]):
                    more[concepts[entry]] += 1
            for place in range(first, end):
                text = keys[unit, place] & low
                for entry in range(concept_starts[text], concept_starts[text + 1]):
                    concept = concepts[entry]
                    if more[concept]:
                        hits[concept] += more[concept]
                        reached = np.float32(more[concept]) * np.float32(hits[concept])
                        precision[concept] += reached / np.float32(seen[set_of[concept]])
                        more[concept] = 0
            first = end
            groups += 1
            if groups == FLUSH or first == keys.shape[1]:
                groups = 0
                _flush(precision, sums, unit)


@compiled
def _add_own_text(codes: np.ndarray, text: int, seen: np.ndarray, hits: np.ndarray, precision: np.ndarray) -> None:
    """An untied text, whose rank every concept counts among its own."""
    for concept in range(hits.shape[0]):
        code = codes[text, concept]
        rank = seen[concept] + np.float32(code & np.uint8(1))
        yes = np.float32(code >> np.uint8(1))
        total = hits[concept] + yes
        seen[concept] = rank
        hits[concept] = total
        precision[concept] += yes * total / max(rank, np.float32(1.0))


@compiled
def _count_own(codes: np.ndarray, text: int, seen: np.ndarray, more: np.ndarray) -> None:
    """One text of a tie group."""
    for concept in range(more.shape[0]):
        code = codes[text, concept]
        seen[concept] += np.float32(code & np.uint8(1))
        more[concept] += np.float32(code >> np.uint8(1))


@compiled
def _add_own_group(more: np.ndarray, seen: np.ndarray, hits: np.ndarray, precision: np.ndarray) -> None:
    """A whole tie group, counted before."""
    for concept in range(hits.shape[0]):
        yes = more[concept]
        total = hits[concept] + yes
        more[concept] = 0
        hits[concept] = total
        precision[concept] += yes * total / max(seen[concept], np.float32(1.0))


@compiled
def _scan_crowded(keys: np.ndarray, codes: np.ndarray, sums: np.ndarray) -> None:
    """As `_scan_own` to the same bits; codes are (N, C) uint8: 0 not labelled, 1 negative, 3 positive."""
    low = np.uint64(0xFFFFFFFF)
    seen = np.zeros(codes.shape[1], dtype=np.float32)  # labelled texts so far, of each concept
    hits = np.zeros(codes.shape[1], dtype=np.float32)  # positives so far
    more = np.zeros(codes.shape[1], dtype=np.float32)  # positives in the tie group
    precision = np.zeros(codes.shape[1], dtype=np.float32)
    for unit in range(keys.shape[0]):
        seen[:] = 0
        hits[:] = 0
        first = 0
        groups = 0
        while first < keys.shape[1]:
            end = _group_end(keys, unit, first)
            if end == first + 1:
                _add_own_text(codes, keys[unit, first] & low, seen, hits, precision)
            else:
                for place in range(first, end):
                    _count_own(codes, keys[unit, place] & low, seen, more)
                _add_own_group(more, seen, hits, precision)
            first = end
            groups += 1
            if groups == FLUSH or first == keys.shape[1]:
                groups = 0
                _flush(precision, sums, unit)


@dataclass(frozen=True)
class SharedTexts:
    """Concepts with the same labelled texts."""

    concepts: np.ndarray
    """Their places among all concepts."""
    places: np.ndarray | None
    """For every used text its row in `positive`, -1 for none; None if each has one, in order."""
    positive: np.ndarray
    """(labelled texts, concepts) uint8."""

    def scan(self, keys: np.ndarray, sums: np.ndarray) -> None:
        """Add the precisions at positives to sums (U, C); keys are those of all used texts."""
        chosen = keys
        if self.places is not None:
            chosen = np.empty((len(keys), len(self.positive)), dtype=np.uint64)
            _select(keys, self.places, chosen)
        _scan_shared(chosen, self.positive, sums)


class OwnTexts:
    """Concepts with labelled texts of their own.

    Args:
        concepts: their places among all concepts.
        set_of: (C,) the set of labelled texts of each.
        labelled: (used texts, S) bool.
        positive: (used texts, C) bool.
    """

    def __init__(self, concepts: np.ndarray, set_of: np.ndarray, labelled: np.ndarray, positive: np.ndarray) -> None:
        self.concepts = concepts
        self._tables: tuple[np.ndarray, ...]
        if positive.mean() > CROWDED:
            self._scan = _scan_crowded
            self._tables = (np.ascontiguousarray(labelled[:, set_of] + np.uint8(2) * positive),)
            return
        self._scan = _scan_own
        kind = np.result_type(np.uint16, np.min_scalar_type(len(concepts)))  # short lists stay in the cache
        listed = labelled if labelled.mean() < LISTED else labelled[:, :0]
        lists = []
        for table in (listed, positive):
            lists += [np.append(0, table.sum(axis=1).cumsum()), np.nonzero(table)[1].astype(kind)]
        self._tables = (np.ascontiguousarray(labelled).view(np.uint8), *lists, set_of.astype(kind))

    def scan(self, keys: np.ndarray, sums: np.ndarray) -> None:
        """Add the precisions at positives to sums (U, C)."""
        self._scan(keys, *self._tables, sums)


def scan(
    values: np.ndarray,
    columns: np.ndarray,
    blocks: Sequence[SharedTexts | OwnTexts],
    num_concepts: int,
    num_threads: int,
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
            sums = np.zeros((len(keys), len(block.concepts)))
            block.scan(keys, sums)
            ap[first : first + BLOCK, block.concepts] = sums

    starts = range(0, len(values), BLOCK)
    if num_threads == 1 or len(starts) == 1:
        for first in starts:
            run(first)
    else:
        list(_threads(num_threads, os.getpid()).map(run, starts))
    return ap
