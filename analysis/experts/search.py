"""The search for experts: one walk over all units ranks several labellings and keeps the best units of each.

Main labels, the labels of each half and shuffled labels of the same sentences are so many more concepts to the same
sort of a unit's responses.

Shapes:  U units of one update   C concepts   L languages   K experts   G = L x C groups
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analysis.concepts.concept_set import ConceptPool, ConceptSet
from analysis.experts.average_precision import Labels, average_precision, settle_ties
from analysis.experts.correlation import RankCorrelation
from analysis.experts.ranks import auroc, percentiles
from analysis.experts.topk import DeepTop, TopUnits

FORCING_SHARES = np.array([0.5, 0.9])
"""Of the positives' responses, see `on_p50` and `on_p90`."""
Details = Callable[[int, np.ndarray], Mapping[str, np.ndarray]]
"""What to keep of the units of one update that enter the ranking of a group."""


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
    """What `top_units` finds; see the fields of `analysis.experts.table.ExpertTable`."""

    experts: Experts
    described: Mapping[str, np.ndarray]
    """(L, C, K) by name: AUROC, and statistics of the responses."""
    halves: Halves | None
    shuffled: tuple[np.ndarray, ...]
    shuffled_ap: np.ndarray


def top_units(
    stream: Iterable[tuple[int, Sequence[Tensor]]],
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
        stream: flat id of the first unit, and the responses (U, N) of consecutive units of one site to each language's
            texts.
        deepest: with halves, as many units of each are kept (at least `k`).
        halves, shuffles, seed: see `analysis.experts.table.find_experts`.
    """
    languages, concepts = concept_set.languages, concept_set.concepts
    labellings = [concept_set]
    if halves:
        labellings += [concept_set.half(0), concept_set.half(1)]
    labellings += [concept_set.shuffled(seed + number) for number in range(shuffles)]
    pools = [concept_set.pools[language] for language in languages]
    labels = [_index([labelling.pools[language] for labelling in labellings], concepts) for language in languages]
    num_groups = len(languages) * len(concepts)
    tops = [TopUnits(num_groups, k) for _ in labellings]
    deep = [DeepTop(num_groups, max(deepest, k)) for _ in range(2 if halves else 0)]
    correlation = RankCorrelation(num_groups)
    for first, values in stream:
        settled = [settle_ties(part) for part in values]
        scores = [average_precision(part, one).cpu().numpy() for part, one in zip(settled, labels, strict=True)]
        ap = np.split(np.stack(scores), len(labellings), axis=1)  # (L, C, U) of every labelling
        details = [_both(_keep_ap(ap[0]), _describe(values, settled, pools, concepts))]
        if halves:  # held out: each half's experts with their AP on the other half
            details += [_keep_ap(ap[2]), _keep_ap(ap[1])]
            correlation.update(ap[1], ap[2])
        details += [_nothing] * shuffles
        for top, scores_of, keep in zip(tops, ap, details, strict=True):
            top.update(scores_of.reshape(num_groups, -1), first, keep)
        for below, scores_of in zip(deep, ap[1:3], strict=False):
            below.update(scores_of.reshape(num_groups, -1), first)

    shape = (len(languages), len(concepts))
    found = [_experts(top, shape) for top in tops[: 3 if halves else 1]]
    payload = {name: kept for name, kept in tops[0].payload.items() if name not in ("ap", "ap_of_others")}
    by_chance = tops[len(found) :]
    return Found(
        experts=found[0],
        described={name: kept.reshape(*shape, k) for name, kept in payload.items()},
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


def _index(pools: Sequence[ConceptPool], concepts: Sequence[str]) -> Labels:
    """One language's texts, labelled for every labelling's concepts one after the other."""
    yes = [pool.positives[concept] for pool in pools for concept in concepts]
    no = [pool.negatives[concept] for pool in pools for concept in concepts]
    return Labels(len(pools[0].texts), yes, no)


def _keep_ap(ap: np.ndarray) -> Details:
    """AP in every language, and mean AP for the other concepts, from `ap` (L, C, U)."""
    num_concepts = ap.shape[1]
    totals = ap.sum(axis=1)

    def keep(group: int, units: np.ndarray) -> Mapping[str, np.ndarray]:
        own = ap[:, group % num_concepts, units].T
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

    def keep(group: int, units: np.ndarray) -> Mapping[str, np.ndarray]:
        language, place = divmod(group, len(concepts))
        yes, no = sides[language][place]
        rows = torch.from_numpy(units).to(values[language].device)
        chosen = values[language][rows].cpu().numpy()
        p50, p90 = percentiles(chosen, yes, FORCING_SHARES)
        return {
            "auroc": auroc(settled[language][rows].cpu().numpy(), yes, no),
            "on_p50": p50,
            "on_mean": chosen.take(yes, axis=1).mean(1),
            "on_p90": p90,
            "off_mean": chosen.take(no, axis=1).mean(1),
        }

    return keep


def _both(one: Details, other: Details) -> Details:
    return lambda group, units: {**one(group, units), **other(group, units)}


def _nothing(group: int, units: np.ndarray) -> Mapping[str, np.ndarray]:
    return {}


def _experts(top: TopUnits, shape: tuple[int, int]) -> Experts:
    ap, others = (top.payload[name].reshape(*shape, top.k, shape[0]) for name in ("ap", "ap_of_others"))
    return Experts(top.units.reshape(*shape, top.k), ap, others)
