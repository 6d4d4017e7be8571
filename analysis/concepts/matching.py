"""Positives of a concept, each with negatives that differ from it in nothing but the concept.

Negatives are matched by stratum (source, split, length class) and exist in every language in which their positive is
used. A concept neuron found against unmatched negatives is one for manuals against stories, or for long against short
sentences.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from analysis.concepts.aligned import AlignedText
from analysis.concepts.lexicon import fold
from analysis.concepts.rules import ConceptRule
from analysis.concepts.words import WORD_CHARACTERS

LENGTH_CLASSES = (8, 14, 22, 35)
"""Upper bounds, in words of the pivot side, of the length classes; about the quintiles of the medium corpus."""

_TOKEN = re.compile(rf"[{WORD_CHARACTERS}]+")


@dataclass
class Groups:
    """P positives in the order in which they were chosen; L languages."""

    positives: np.ndarray
    """Int (P,): segments."""
    negatives: list[np.ndarray]
    """P arrays of segments; a segment serves at most one positive."""
    used: np.ndarray
    """Bool (P, L): the group belongs to the sample of this language."""
    available: np.ndarray
    """Int (L,): positives before the cap."""

    def in_language(self, column: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Positives and their negatives of one language."""
        members = np.flatnonzero(self.used[:, column])
        return self.positives[members], [self.negatives[i] for i in members]


class GroupFinder:
    """Finds the groups of any concept in one text.

    Args:
        text: segments in all languages.
        pivot: the language in which word forms are looked for.
        cap: positives per concept and language at most.
        num_negatives: per positive.
        word_range: least and greatest number of words of the pivot side, separated by blanks.
        complete: use only segments that exist in all languages.

    Raises:
        ValueError: no segment is left.
    """

    def __init__(
        self,
        text: AlignedText,
        *,
        pivot: str,
        cap: int,
        num_negatives: int,
        word_range: tuple[int, int],
        complete: bool,
    ) -> None:
        self._text = text
        self._pivot_texts = [pivot_text or "" for pivot_text in text.texts[pivot]]
        self._cap = cap
        self._num_negatives = num_negatives
        words = np.array([len(pivot_text.split()) for pivot_text in self._pivot_texts])
        self._eligible = (words >= word_range[0]) & (words <= word_range[1])
        if complete:
            self._eligible &= text.present.all(1)
        if not self._eligible.any():
            limits = f"{word_range[0]} to {word_range[1]} words in {pivot!r}"
            raise ValueError(f"no segment has {limits}{' and a text in every language' if complete else ''}")
        classes = np.searchsorted(LENGTH_CLASSES, words).tolist()
        self._strata = list(zip(text.sources, text.splits, classes, strict=True))
        self._segments_of: dict[str, list[int]] = defaultdict(list)
        for row in np.flatnonzero(self._eligible):
            for token in set(_TOKEN.findall(fold(self._pivot_texts[row]))):
                self._segments_of[token].append(int(row))

    def find(self, rule: ConceptRule) -> Groups:
        """The groups of one concept; no positives gives empty groups."""
        present = self._text.present
        in_domain = self._eligible & np.array([rule.applies_to(source) for source in self._text.sources])
        starts = {_TOKEN.findall(fold(form))[0] for form in rule.forms}
        candidates = sorted({row for token in starts for row in self._segments_of.get(token, ()) if in_domain[row]})
        labels = {row: rule.judge(self._pivot_texts[row]) for row in candidates}
        is_negative = in_domain.copy()
        is_negative[[row for row, label in labels.items() if label is not False]] = False

        found = np.array([row for row, label in labels.items() if label], dtype=np.intp)
        # most translations first, so that capped languages share their segments; in hash order where equal
        found = found[np.argsort(-present[found].sum(1), kind="stable")]
        counts = np.zeros(len(self._text.languages), dtype=int)
        positives: list[int] = []
        used = np.zeros((len(found), len(counts)), dtype=bool)
        for row in found.tolist():
            room = present[row] & (counts < self._cap)
            if room.any():
                used[len(positives)] = room
                positives.append(row)
                counts += room
        used = used[: len(positives)]
        return Groups(
            positives=np.array(positives, dtype=np.intp),
            negatives=self._match(positives, used, is_negative),
            used=used,
            available=present[found].sum(0),
        )

    def _match(self, positives: list[int], used: np.ndarray, is_negative: np.ndarray) -> list[np.ndarray]:
        pools: dict[tuple[str, str, int], list[int]] = defaultdict(list)
        for row in np.flatnonzero(is_negative).tolist():
            pools[self._strata[row]].append(row)
        left = {stratum: np.array(rows, dtype=np.intp) for stratum, rows in pools.items()}
        groups = []
        for row, languages in zip(positives, used, strict=True):
            pool = left.get(self._strata[row], np.zeros(0, dtype=np.intp))
            fitting = np.flatnonzero(self._text.present[pool][:, languages].all(1))[: self._num_negatives]
            groups.append(pool[fitting])
            left[self._strata[row]] = np.delete(pool, fitting)
        return groups
