"""Labels parallel text with concepts: positives, matched negatives, and how well each label survives translation.

A segment is a positive of a concept if its pivot-language side has one of the concept's word forms
(analysis/concepts/rules.py), a negative if it has none; the label is the segment's, hence every language's. Positives
are held to `cap` and matched with negatives in analysis/concepts/matching.py; whether the translation still speaks of
the concept is estimated in analysis/concepts/lexicon.py. Plays the part of the OneSec sentence sets of Suau et al.
2022, in many languages at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.concepts.aligned import AlignedText, read_aligned
from analysis.concepts.file import Cell, Labelling, concept_table
from analysis.concepts.lexicon import EntryIndex, find_lexicon, fold
from analysis.concepts.matching import GroupFinder, Groups, LabellingSettings
from analysis.concepts.rules import ConceptRule, choose_rules, group_concepts, read_concept_rules

LEXICON_LIMITS: Mapping[str, Mapping[str, Any]] = {
    "word": {"size": 3, "min_share": 0.03},
    "field": {"size": 20, "min_share": 0.015},
}
"""Entries that may explain a concept of each kind. A share of 0.015 for words would raise their mean support on the
medium corpus by 0.006 and its chance floor from 0.02 to 0.07; the words of a field are each too rare for more."""

MINIMUM_FOR_SUPPORT = 20
"""Positives below which support is not estimated: a few entries would fit anything."""


DEFAULTS = LabellingSettings()


def label_concepts(texts: str | Path, concepts: str | Path, settings: LabellingSettings = DEFAULTS) -> Labelling:
    """Labels the segments of the file `texts` with the concepts of the list `concepts`.

    Deterministic: the order is a hash of the segments' keys; nothing is drawn.

    Raises:
        FileNotFoundError: one of the files is missing. ValueError: a malformed file (named with its place), an unknown
        concept, language or split, a concept asked for by name that misses a minimum,
            or no concept left.
    """
    rules = choose_rules(read_concept_rules(concepts), settings.concepts, settings.kinds)
    text = read_aligned(texts, pivot=settings.pivot, languages=settings.languages, splits=settings.splits)
    finder = GroupFinder(text, settings)
    indices = {language: EntryIndex(text.texts[language], language) for language in text.languages}
    kept: list[_Labelled] = []
    dropped: dict[str, str] = {}
    for rule in rules:
        labelled = _Labelled(rule, finder.find(rule), text, settings)
        reason = labelled.too_few()
        if reason is None:
            labelled.examine(indices)
            reason = labelled.too_weak() or labelled.too_few()
        if reason is None:
            kept.append(labelled)
        elif settings.concepts:
            raise ValueError(f"{texts}: concept {rule.name!r} {reason}; lower the minimum or leave the concept out")
        else:
            dropped[rule.name] = reason
    if settings.independent:
        kept = _independent(kept, dropped)
    kept = _richest(kept, settings.max_concepts, dropped)
    if not kept:
        example = next((f"{name} {reason}" for name, reason in dropped.items()), "the list has none of these kinds")
        raise ValueError(f"{texts}: no concept is left ({example}); lower min_positives or take fewer languages")
    return Labelling(
        table=concept_table(
            text,
            {item.rule.name: item.groups for item in kept},
            {item.rule.name: item.weak for item in kept},
            _families({item.rule.name: {fold(form) for form in item.rule.forms} for item in kept}),
        ),
        cells=tuple(cell for item in kept for cell in item.cells),
        lexicon={item.rule.name: item.lexicon for item in kept},
        dropped=dropped,
    )


def label_by_lists(texts: str | Path, lists: Mapping[str, str | Path], settings: LabellingSettings) -> Labelling:
    """Labels each language by a list of its own, so that no text needs a translation; concepts are those of all lists.

    Args:
        lists: ISO 639-1 to a concept list with the word forms of that language and the names of all.

    Raises:
        FileNotFoundError, ValueError: see `label_concepts`; or no concept is left in all languages.
    """
    if foreign := sorted(set(settings.languages) - set(lists)):
        raise ValueError(f"no concept list for {foreign[0]!r}; lists are given for {', '.join(lists)}")
    parts = {
        language: label_concepts(
            texts, path, replace(settings, pivot=language, languages=(language,), max_concepts=None)
        )
        for language, path in lists.items()
        if not settings.languages or language in settings.languages
    }
    dropped: dict[str, str] = {}
    for language, part in parts.items():
        dropped |= {name: f"{reason} (list of {language})" for name, reason in part.dropped.items()}
    poorest = {
        name: min(cell.available for part in parts.values() for cell in part.cells if cell.concept == name)
        for name in next(iter(parts.values())).lexicon
        if all(name in part.lexicon for part in parts.values())
    }
    ranked = sorted(poorest, key=lambda name: (-poorest[name], name))[: settings.max_concepts]
    if not ranked:
        raise ValueError(f"{texts}: no concept is left in all of {', '.join(parts)}; lower min_positives")
    table = pa.concat_tables([part.table for part in parts.values()])
    table = table.filter(pc.is_in(table["concept"], pa.array(ranked)))
    own = {name: {(code, form) for code in parts for form in parts[code].lexicon[name][code]} for name in ranked}
    families = _families(own)
    groups = pa.array([families[name] for name in table["concept"].to_pylist()], pa.string())
    return Labelling(
        table=table.set_column(table.schema.get_field_index("group"), "group", groups),
        cells=tuple(cell for part in parts.values() for cell in part.cells if cell.concept in ranked),
        lexicon={
            name: {language: part.lexicon[name][language] for language, part in parts.items()}
            for name in poorest
            if name in ranked
        },
        dropped=dropped | dict.fromkeys(poorest.keys() - {*ranked}, f"is beyond max_concepts {settings.max_concepts}"),
    )


class _Labelled:
    """One concept with its groups, its lexicon and its weak positives in each language."""

    def __init__(self, rule: ConceptRule, groups: Groups, text: AlignedText, settings: LabellingSettings) -> None:
        self.rule = rule
        self.groups = groups
        self.cells: list[Cell] = []
        self.lexicon: dict[str, list[str]] = {}
        self.weak: dict[str, frozenset[int]] = {}
        self._languages = text.languages
        self._settings = settings

    def too_few(self) -> str | None:
        """The first language without enough positives, in words."""
        minimum = self._settings.min_positives
        for language, count in zip(self._languages, self.groups.used.sum(0), strict=True):
            if count < minimum:
                return f"has {count} positives in {language!r} (min_positives {minimum})"
        return None

    def too_weak(self) -> str | None:
        """Whether translation loses the concept too often, in words."""
        known = [cell.support for cell in self.cells if cell.support is not None]
        if known and np.mean(known) < self._settings.min_support:
            return f"has a support of {np.mean(known):.2f} (min_support {self._settings.min_support:g})"
        return None

    def examine(self, indices: Mapping[str, EntryIndex]) -> None:
        """Finds lexicon, support and weak positives in each language; in strict mode takes the weak ones out."""
        for column, language in enumerate(self._languages):
            positives, negatives = self.groups.in_language(column)
            support = floor = false_hits = None
            if language == self._settings.pivot:
                self.lexicon[language] = [fold(form) for form in self.rule.forms]
                self.weak[language] = frozenset()
            elif len(positives) >= MINIMUM_FOR_SUPPORT:
                index, limits = indices[language], LEXICON_LIMITS[self.rule.kind]
                entries, covered, false_hits = find_lexicon(index, positives, _joined(negatives), **limits)
                self.lexicon[language], support = entries, float(covered.mean())
                self.weak[language] = frozenset(int(row) for row in positives[~covered])
                floor = _support_by_chance(index, negatives, limits)
                if self._settings.strict:
                    members = np.flatnonzero(self.groups.used[:, column])
                    self.groups.used[members[~covered], column] = False
            positives, negatives = self.groups.in_language(column)
            self.cells.append(
                Cell(
                    concept=self.rule.name,
                    language=language,
                    available=int(self.groups.available[column]),
                    positives=len(positives),
                    negatives=len(_joined(negatives)),
                    support=support,
                    support_floor=floor,
                    false_hits=false_hits,
                )
            )


def _support_by_chance(index: EntryIndex, negatives: Sequence[np.ndarray], limits: Mapping[str, Any]) -> float | None:
    """Support of sentences without a common concept: the first negative of each group, against the other negatives."""
    stand_ins = _joined([group[:1] for group in negatives])
    others = _joined([group[1:] for group in negatives])
    if len(stand_ins) < MINIMUM_FOR_SUPPORT or not len(others):
        return None
    return float(find_lexicon(index, stand_ins, others, **limits)[1].mean())


def _families(forms: Mapping[str, Set[Hashable]]) -> dict[str, str]:
    """Concept to the first one of those that it shares a word form with, at one or several removes."""
    names = list(forms)
    ties = [
        (one, other)
        for (one, first), (other, second) in combinations(enumerate(names), 2)
        if forms[first] & forms[second]
    ]
    return {name: names[group] for name, group in zip(names, group_concepts(ties, len(names)), strict=True)}


def _joined(groups: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.intp), *groups])


def _independent(kept: list[_Labelled], dropped: dict[str, str]) -> list[_Labelled]:
    """Those that share no form with another, in the order of the list; words come before fields, rich before poor."""
    owners: dict[str, str] = {}
    for item in sorted(kept, key=lambda item: (item.rule.kind == "field", -int(item.groups.available.min()))):
        forms = [fold(form) for form in item.rule.forms]
        shared = next((form for form in forms if form in owners), None)
        if shared is not None:
            dropped[item.rule.name] = f"shares the form {shared!r} with {owners[shared]} (independent)"
        else:
            owners |= dict.fromkeys(forms, item.rule.name)
    return [item for item in kept if item.rule.name not in dropped]


def _richest(kept: list[_Labelled], limit: int | None, dropped: dict[str, str]) -> list[_Labelled]:
    """The `limit` concepts with the most positives in their poorest language, in the order of the list."""
    ranked = sorted(kept, key=lambda item: (-int(item.groups.available.min()), item.rule.name))
    beyond = ranked[limit:] if limit is not None else []
    dropped.update({item.rule.name: f"is beyond max_concepts {limit}" for item in beyond})
    return [item for item in kept if item not in beyond]
