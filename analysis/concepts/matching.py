"""Positives of a concept, each with negatives that differ from it in nothing but the concept.

Negatives are matched by stratum (source, split, length class, half of the sentences), there the nearest in length
first, and exist in every language in which their positive is used. A concept neuron found against unmatched negatives
is one for manuals against stories, or for long against short sentences; and what length the classes leave is the same
in all languages, so that it passes for sharing (studies/first_light/lengths.py). The half is the sentence's own, for
every concept: one that served a concept in one half and another concept in the other would be common to both sides of
the null that is made of different concepts. Under the cap both halves have equally many positives. A text that stands
under several keys is taken once: its copies would lie in both halves of the sentences, where translations that respond
alike then pass for a concept.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from analysis.concepts.aligned import AlignedText
from analysis.concepts.halves import half_of
from analysis.concepts.lexicon import fold
from analysis.concepts.rules import KINDS, ConceptRule
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


@dataclass(frozen=True, kw_only=True)
class LabellingSettings:
    """What to label, and how much of it."""

    languages: tuple[str, ...] = ()
    """ISO 639-1; none means all languages of the text. The pivot is always among them."""
    concepts: tuple[str, ...] = ()
    """Names from the list; none means every concept that reaches the minima."""
    kinds: tuple[str, ...] = KINDS
    """`word`, `field`; fields contain words that are concepts of their own."""
    splits: tuple[str, ...] = ()
    """Of `train`, `valid`, `test`; none means all. Negatives are of their positive's split in any case."""
    pivot: str = "en"
    """The language of the word forms."""
    min_positives: int = 30
    """Positives that a concept needs in every language."""
    max_concepts: int | None = None
    """Keep only those with the most positives in their poorest language."""
    cap: int = 200
    """Positives per concept and language at most, half of them in each half of the sentences; segments with the most
    translations first."""
    negatives: int = 5
    """Negatives per positive."""
    min_words: int = 4
    """Least length of the pivot side in words, separated by blanks."""
    max_words: int = 60
    """Greatest length of the pivot side in words."""
    min_support: float = 0.8
    """Mean support over the languages below which a concept is left out."""
    strict: bool = False
    """Leave out the weak positives of each language, with their negatives."""
    independent: bool = False
    """Keep no two concepts that share a word form: a field gives way to the words in it that are concepts here."""
    complete: bool = False
    """Use only segments that exist in all languages."""

    def __post_init__(self) -> None:
        for name in ("min_positives", "cap", "negatives", "min_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_concepts is not None and self.max_concepts < 1:
            raise ValueError(f"max_concepts must be at least 1, got {self.max_concepts}")
        if self.min_positives > self.cap:
            raise ValueError(f"min_positives {self.min_positives} cannot be reached under cap {self.cap}; raise cap")
        if self.max_words < self.min_words:
            raise ValueError(f"max_words {self.max_words} is below min_words {self.min_words}")
        if not 0.0 <= self.min_support <= 1.0:
            raise ValueError(f"min_support is a share between 0 and 1, got {self.min_support:g}")


class GroupFinder:
    """Finds the groups of any concept in one text.

    Raises:
        ValueError: no segment is left.
    """

    def __init__(self, text: AlignedText, settings: LabellingSettings) -> None:
        self._text = text
        self._pivot_texts = [pivot_text or "" for pivot_text in text.texts[settings.pivot]]
        self._cap = settings.cap
        self._num_negatives = settings.negatives
        # Characters, since tokens, also those of the translations, follow them more closely than words.
        self._lengths = np.array([len(pivot_text) for pivot_text in self._pivot_texts])
        words = np.array([len(pivot_text.split()) for pivot_text in self._pivot_texts])
        self._eligible = (words >= settings.min_words) & (words <= settings.max_words) & self._first_copies()
        if settings.complete:
            self._eligible &= text.present.all(1)
        if not self._eligible.any():
            limits = f"{settings.min_words} to {settings.max_words} words in {settings.pivot!r}"
            raise ValueError(f"no segment has {limits}{' and a text in every language' if settings.complete else ''}")
        classes = np.searchsorted(LENGTH_CLASSES, words).tolist()
        self._halves = [half_of(uid) for uid in text.uids]
        self._strata = list(zip(text.sources, text.splits, classes, self._halves, strict=True))
        self._segments_of: dict[str, list[int]] = defaultdict(list)
        for row in np.flatnonzero(self._eligible):
            for token in set(_TOKEN.findall(fold(self._pivot_texts[row]))):
                self._segments_of[token].append(int(row))

    def _first_copies(self) -> np.ndarray:
        """Bool (N,): of segments with the same pivot text the one with the most translations, the first of them."""
        chosen: dict[str, int] = {}
        for row in np.argsort(-self._text.present.sum(1), kind="stable").tolist():
            chosen.setdefault(" ".join(fold(self._pivot_texts[row]).split()), row)
        first = np.zeros(len(self._text), dtype=bool)
        first[list(chosen.values())] = True
        return first

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
        limits = ((self._cap + 1) // 2, self._cap // 2)
        counts = np.zeros((2, len(self._text.languages)), dtype=int)
        positives: list[int] = []
        used = np.zeros((len(found), counts.shape[1]), dtype=bool)
        for row in found.tolist():
            half = self._halves[row]
            room = present[row] & (counts[half] < limits[half])
            if room.any():
                used[len(positives)] = room
                positives.append(row)
                counts[half] += room
        used = used[: len(positives)]
        return Groups(
            positives=np.array(positives, dtype=np.intp),
            negatives=self._match(positives, used, is_negative),
            used=used,
            available=present[found].sum(0),
        )

    def _match(self, positives: list[int], used: np.ndarray, is_negative: np.ndarray) -> list[np.ndarray]:
        pools: dict[tuple[str, str, int, int], list[int]] = defaultdict(list)
        for row in np.flatnonzero(is_negative).tolist():
            pools[self._strata[row]].append(row)
        left = {stratum: np.array(rows, dtype=np.intp) for stratum, rows in pools.items()}
        groups = []
        for row, languages in zip(positives, used, strict=True):
            pool = left.get(self._strata[row], np.zeros(0, dtype=np.intp))
            fitting = np.flatnonzero(self._text.present[pool][:, languages].all(1))
            apart = np.abs(self._lengths[pool[fitting]] - self._lengths[row])
            fitting = fitting[np.argsort(apart, kind="stable")[: self._num_negatives]]
            groups.append(pool[fitting])
            left[self._strata[row]] = np.delete(pool, fitting)
        return groups
