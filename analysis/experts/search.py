"""The search for experts: one walk over all units ranks several labellings and keeps the best units of each.

Main labels, the labels of each half and shuffled labels of the same sentences are so many more concepts to the same
sort of a unit's responses.

Shapes:  U units of one update   C concepts   L languages   K experts   G = L x C groups
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from analysis.concepts.concept_set import ConceptPool, ConceptSet
from analysis.experts.average_precision import Labels, average_precision, settle_ties
from analysis.experts.correlation import RankCorrelation
from analysis.experts.ranks import auroc, percentile
from analysis.experts.topk import Details, TopUnits

DESCRIBED = ("auroc", "on_p50", "on_mean", "on_p90", "off_mean")
"""Kept of every expert, see the fields of `Found`."""


@dataclass(frozen=True)
class Experts:
    """The top units of every (language, concept) by one labelling of the sentences."""

    units: np.ndarray
    """(L, C, K) int64 flat ids, best first."""
    ap: np.ndarray
    """(L, C, K, L) float32: AP of each expert for its concept in every language."""
    ap_of_others: np.ndarray
    """(L, C, K, L) float32: its mean AP for the other concepts in every language (its own AP if there are none)."""


@dataclass(frozen=True)
class Halves:
    """What disjoint halves of the sentences say."""

    experts: tuple[Experts, Experts]
    """Experts by each half, with AP measured on the *other* half."""
    deep: tuple[np.ndarray, np.ndarray]
    """(L, C, D) int64 flat ids by each half, best first: as deep as the largest K that is compared."""
    correlation: np.ndarray
    """(L, C, L, C) Spearman correlation of AP over units, within sites: rows by one half, columns by the other."""


@dataclass(frozen=True)
class Found:
    """What `top_units` finds; languages and concepts in the order of the concept set."""

    experts: Experts
    auroc: np.ndarray
    """(L, C, K) float32."""
    on_p50: np.ndarray
    """(L, C, K) float32: median response to the positives, the forcing value of Suau et al."""
    on_mean: np.ndarray
    on_p90: np.ndarray
    off_mean: np.ndarray
    """(L, C, K) float32: mean response to the negatives."""
    halves: Halves | None
    shuffled: tuple[np.ndarray, ...]
    """(L, C, K) flat ids by shuffled labels, one for each shuffle."""
    shuffled_ap: np.ndarray
    """(shuffles, L, C, K) float32: AP of those units for the shuffled labels, descending."""


def top_units(
    stream: Iterable[tuple[int, bool, Sequence[Tensor]]],
    concept_set: ConceptSet,
    k: int,
    *,
    deepest: int = 0,
    halves: bool = False,
    shuffles: int = 0,
    seed: int = 0,
) -> Found:
    """The `k` best units of every concept in every language.

    Args:
        stream: flat id of the first unit, whether a site ends with these units, and the responses (U, N) of consecutive
            units of one site to each language's texts.
        deepest: with halves, as many units of each are kept (at least `k`).
        halves, shuffles, seed: see `analysis.experts.table.find_experts`.
    """
    languages, concepts = concept_set.languages, concept_set.concepts
    pools = [concept_set.pools[language] for language in languages]
    labels = _label(concept_set, halves, shuffles, seed)
    num_labellings = 1 + 2 * halves + shuffles
    num_groups = len(languages) * len(concepts)
    tops = [TopUnits(num_groups, k) for _ in range(num_labellings)]
    deep = [TopUnits(num_groups, max(deepest, k)) for _ in range(2 * halves)]
    correlation = RankCorrelation(num_groups)
    for first, complete, values in stream:
        settled = [settle_ties(part) for part in values]
        scores = [average_precision(part, one).cpu().numpy() for part, one in zip(settled, labels, strict=True)]
        ap = np.split(np.stack(scores), num_labellings, axis=1)  # (L, C, U) of every labelling
        details: list[Details | None] = [_both(_keep_ap(ap[0]), _describe(values, settled, pools, concepts))]
        if halves:  # held out: each half's experts with their AP on the other half
            details += [_keep_ap(ap[2]), _keep_ap(ap[1])]
            correlation.update(ap[1], ap[2], complete=complete)
        details += [None] * shuffles
        for top, scores_of, keep in zip(tops, ap, details, strict=True):
            top.update(scores_of.reshape(num_groups, -1), first, keep)
        for below, scores_of in zip(deep, ap[1:3], strict=False):
            below.update(scores_of.reshape(num_groups, -1), first)

    shape = (len(languages), len(concepts))
    kept = tops[0].payload
    found = [_experts(top, shape) for top in tops[: 1 + 2 * halves]]
    by_chance = tops[len(found) :]
    return Found(
        experts=found[0],
        **{name: kept[name].reshape(*shape, k) for name in DESCRIBED},
        halves=Halves(
            experts=(found[1], found[2]),
            deep=(deep[0].units.reshape(*shape, -1), deep[1].units.reshape(*shape, -1)),
            correlation=correlation.result().reshape(*shape, *shape),
        )
        if halves
        else None,
        shuffled=tuple(top.units.reshape(*shape, k) for top in by_chance),
        shuffled_ap=np.array([top.scores.reshape(*shape, k) for top in by_chance]).reshape(-1, *shape, k),
    )


@lru_cache(maxsize=2)
def _label(concept_set: ConceptSet, halves: bool, shuffles: int, seed: int) -> list[Labels]:
    """Each language's texts, labelled for every labelling's concepts one after the other; once for all snapshots."""
    labellings = [concept_set]
    if halves:
        labellings += [concept_set.half(0), concept_set.half(1)]
    labellings += [concept_set.shuffled(seed + number) for number in range(shuffles)]
    found = []
    for language in concept_set.languages:
        pools = [labelling.pools[language] for labelling in labellings]
        yes = [pool.positives[concept] for pool in pools for concept in concept_set.concepts]
        no = [pool.negatives[concept] for pool in pools for concept in concept_set.concepts]
        found.append(Labels(len(pools[0].texts), yes, no))
    return found


def _keep_ap(ap: np.ndarray) -> Details:
    """AP in every language, and mean AP for the other concepts, from `ap` (L, C, U)."""
    num_concepts = ap.shape[1]
    totals = ap.sum(axis=1)

    def keep(groups: np.ndarray, units: np.ndarray) -> Mapping[str, np.ndarray]:
        own = ap[:, groups % num_concepts, units].T
        rest = num_concepts - 1
        return {"ap": own, "ap_of_others": (totals[:, units].T - own) / rest if rest else own}

    return keep


def _describe(
    values: Sequence[Tensor], settled: Sequence[Tensor], pools: Sequence[ConceptPool], concepts: Sequence[str]
) -> Details:
    """AUROC, and the statistics of the responses to positives and negatives in the group's own language."""

    sides = [
        [(pool.positives[concept].numpy(), pool.negatives[concept].numpy()) for concept in concepts] for pool in pools
    ]

    def keep(groups: np.ndarray, units: np.ndarray) -> Mapping[str, np.ndarray]:
        found = {name: np.empty(len(units), dtype=np.float32) for name in DESCRIBED}
        starts = np.searchsorted(groups, np.arange(len(pools) * len(concepts) + 1))
        for language in range(len(pools)):
            first, last = starts[[language * len(concepts), (language + 1) * len(concepts)]]
            if first == last:
                continue
            chosen, row = np.unique(units[first:last], return_inverse=True)
            raw, ranked = (_rows(part[language], chosen) for part in (values, settled))
            for place, texts in enumerate(sides[language]):
                here = slice(*starts[language * len(concepts) + place :][:2])
                own = row[here.start - first : here.stop - first]
                (on, off), both = ([_of(table, own, side) for side in texts] for table in (raw, ranked))
                ordered = np.sort(on)
                found["auroc"][here] = auroc(*map(np.sort, both))
                found["on_p50"][here] = percentile(ordered, 0.5)
                found["on_mean"][here] = on.mean(1)
                found["on_p90"][here] = percentile(ordered, 0.9)
                found["off_mean"][here] = off.mean(1)
        return found

    return keep


def _rows(values: Tensor, chosen: np.ndarray) -> np.ndarray:
    """Rows of (U, N), wherever it lives, on the host."""
    rows: np.ndarray = values[torch.from_numpy(chosen).to(values.device)].cpu().numpy()
    return rows


def _of(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`table[rows][:, columns]` without a copy of whole rows."""
    taken: np.ndarray = table.take(rows[:, None] * table.shape[1] + columns)
    return taken


def _both(one: Details, other: Details) -> Details:
    return lambda groups, units: {**one(groups, units), **other(groups, units)}


def _experts(top: TopUnits, shape: tuple[int, int]) -> Experts:
    units, kept = top.units, top.payload
    ap, others = (kept[name].reshape(*shape, -1, shape[0]) for name in ("ap", "ap_of_others"))
    return Experts(units.reshape(*shape, -1), ap, others)
