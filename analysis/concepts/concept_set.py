"""Concepts as labelled sentences: for each language one pool of texts that all concepts share.

Sharing one pool means one forward pass and one sort per unit for all concepts. Halves of the sentences are for measures
that choose units on one part and look at them on another. A file that gives each sentence a half (`label` does) has
one partition for all concepts, so that no sentence is in both, of whatever concepts. Where it does not, each concept
has its own, and a sentence that is labelled for two concepts may be in different halves: what is compared between
*different* concepts then has sentences in common, and a null made of it is too high where translations respond alike.

A negative is in the half of the positive that it was matched to: matching makes positives and negatives alike in source
and length *together*, so a half that had a positive without its negatives would tell sentences apart by length alone,
with the opposite sign in the other half.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from analysis.concepts.halves import hash_order

log = logging.getLogger(__name__)

MANY_IN_BOTH = 0.01
"""Share of the sentences that are in both halves above which it is warned of them."""


@dataclass(frozen=True)
class ConceptPool:
    """The texts of one language and which of them carry each concept."""

    language: str
    texts: tuple[str, ...]
    keys: tuple[str, ...]
    """One per text; translations share it."""
    positives: Mapping[str, Tensor]
    """Concept to (P,) int64 indices into `texts`."""
    negatives: Mapping[str, Tensor]
    matches: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Concept to: key of a negative to the key of the positive that it was chosen for, where the file says so."""
    halves: Mapping[str, int] = field(default_factory=dict)
    """Key to 0 or 1, where the file says so."""

    def labels(self, concepts: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
        """Positives and negatives in the order of `concepts`, as `analysis.experts.average_precision` takes them."""
        return [self.positives[concept] for concept in concepts], [self.negatives[concept] for concept in concepts]

    def prevalence(self, concept: str) -> float:
        """Share of positives among the concept's labelled texts: the AP of a unit that knows nothing."""
        count = len(self.positives[concept])
        return count / (count + len(self.negatives[concept]))


@dataclass(frozen=True, eq=False)
class ConceptSet:
    """The same concepts in several languages; equal to itself only, so that what is made of it can be kept."""

    languages: tuple[str, ...]
    concepts: tuple[str, ...]
    pools: Mapping[str, ConceptPool]
    """Language to pool."""
    groups: tuple[int, ...] = ()
    """Of each concept: concepts of one group depend on each other (a field and its words); empty: all stand alone."""

    @property
    def clusters(self) -> np.ndarray:
        """(C,) int: number of the group of every concept."""
        return np.array(self.groups or range(len(self.concepts)))

    @cached_property
    def halves(self) -> Mapping[str, Mapping[str, int]]:
        """Concept to key to 0 or 1: the half of every labelled sentence, the same in all languages and measures.

        As the file has them; else positives alternate in a fixed random order, and negatives go with their positive,
        with a warning of sentences that are in both halves, of different concepts.
        """
        given = {key: half for pool in self.pools.values() for key, half in pool.halves.items()}
        if given:
            return dict.fromkeys(self.concepts, given)
        found = {concept: self._halves_of(concept) for concept in self.concepts}
        seen: dict[str, set[int]] = {}
        for halves in found.values():
            for key, half in halves.items():
                seen.setdefault(key, set()).add(half)
        both = sum(len(halves) > 1 for halves in seen.values())
        if both > MANY_IN_BOTH * len(seen):
            log.warning(
                "%d of %d sentences are in one half for a concept and in the other for another: R may be too low; a "
                "concept file that `python -m analysis label` makes has none of these",
                both,
                len(seen),
            )
        return found

    def _halves_of(self, concept: str) -> Mapping[str, int]:
        where: dict[str, list[str]] = {}
        rest: dict[str, list[str]] = {}
        match: dict[str, str] = {}
        for language in self.languages:
            pool = self.pools[language]
            for place, side in ((where, pool.positives), (rest, pool.negatives)):
                for index in side[concept].tolist():
                    place.setdefault(pool.keys[index], []).append(language)
            match.update(pool.matches.get(concept, {}))
        halves = _alternate(where)
        free = {}
        for key, languages in rest.items():
            if match.get(key) in where:
                halves.setdefault(key, halves[match[key]])
            elif key not in halves:
                free[key] = languages
        return halves | _alternate(free)

    def half(self, which: int) -> ConceptSet:
        """Only the sentences of one half stay labelled; the pools' texts stay as they are.

        Raises:
            ValueError: a concept has no positive or no negative in this half.
        """
        pools = {}
        for language, pool in self.pools.items():
            kept: list[dict[str, Tensor]] = []
            for side in (pool.positives, pool.negatives):
                kept.append({})
                for concept in self.concepts:
                    member = [self.halves[concept][pool.keys[index]] == which for index in side[concept].tolist()]
                    if not any(member):
                        raise ValueError(
                            f"concept {concept!r} in {language!r} has no positives or no negatives in one half: "
                            "it needs more sentences for split-half measures"
                        )
                    kept[-1][concept] = side[concept][torch.tensor(member)]
            pools[language] = replace(pool, positives=kept[0], negatives=kept[1])
        return replace(self, pools=pools)

    def labelled_only(self, languages: Sequence[str]) -> ConceptSet:
        """These languages alone, on pools that hold labelled texts only, so that a half costs half."""
        pools = {}
        for language in languages:
            pool = self.pools[language]
            used = torch.cat([*pool.positives.values(), *pool.negatives.values()]).unique()
            place = torch.full((len(pool.texts),), -1, dtype=torch.int64)
            place[used] = torch.arange(len(used))
            pools[language] = replace(
                pool,
                texts=tuple(pool.texts[index] for index in used.tolist()),
                keys=tuple(pool.keys[index] for index in used.tolist()),
                positives={concept: place[indices] for concept, indices in pool.positives.items()},
                negatives={concept: place[indices] for concept, indices in pool.negatives.items()},
            )
        return replace(self, languages=tuple(languages), pools=pools)

    def shuffled(self, seed: int) -> ConceptSet:
        """Labels drawn anew among each concept's labelled sentences, as many positives as before.

        The draw is a function of seed, concept and the sentence's key, so translations of a sentence keep a common
        label.
        """
        pools = {}
        for language, pool in self.pools.items():
            yes, no = {}, {}
            for concept in self.concepts:
                labelled = torch.cat([pool.positives[concept], pool.negatives[concept]]).tolist()
                prefix = f"shuffle:{seed}:{concept}:"
                labelled.sort(key=lambda index: hashlib.sha256((prefix + pool.keys[index]).encode()).digest())
                count = len(pool.positives[concept])
                yes[concept] = torch.tensor(sorted(labelled[:count]))
                no[concept] = torch.tensor(sorted(labelled[count:]))
            pools[language] = replace(pool, positives=yes, negatives=no, matches={})
        return replace(self, pools=pools)


def _alternate(where: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Halves of keys: 0, 1, 0 ... in hash order among the keys that occur in the same languages."""
    ordered = sorted(where, key=lambda key: (sorted(where[key]), hash_order(key)))
    return {key: place % 2 for place, key in enumerate(ordered)}
