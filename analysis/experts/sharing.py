"""From expert tables to rows: how much of their experts languages share, beside what chance and surface explain.

Every function takes the table of `analysis.experts.table` and gives rows; `analysis.measures.overlap` puts them
together and says what each metric means. What is held out between halves of the sentences: `analysis.experts.heldout`.

Shapes:  L languages   C concepts   K experts   P pairs of languages   S sites
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from analysis.base import Row
from analysis.experts import nulls
from analysis.experts.table import ExpertTable
from analysis.statistics import bootstrap_interval


@dataclass(frozen=True)
class Sharing:
    """An expert table with its pairs of languages and the settings of the intervals."""

    table: ExpertTable
    strata: dict[tuple[str, str], str]
    """Pair of languages, codes in alphabetical order, to its stratum."""
    bootstrap: int
    seed: int

    @cached_property
    def pairs(self) -> np.ndarray:
        """(P, 2) places of languages, codes in alphabetical order within a pair."""
        codes = self.table.languages
        ordered = [
            (one, other) if codes[one] < codes[other] else (other, one)
            for one, other in combinations(range(len(codes)), 2)
        ]
        return np.array(sorted(ordered, key=lambda pair: (codes[pair[0]], codes[pair[1]])))

    @cached_property
    def members(self) -> dict[str, np.ndarray]:
        """Stratum to the places of its pairs."""
        of_pair = [self.strata[self.codes(pair)] for pair in range(len(self.pairs))]
        return {name: np.flatnonzero([one == name for one in of_pair]) for name in sorted(set(of_pair))}

    @cached_property
    def counts(self) -> np.ndarray:
        """(L, C, L, C) units shared by every two expert sets."""
        units = self.table.experts.units
        return nulls.intersections(units, units, self.table.space.num_units)

    @cached_property
    def shared(self) -> np.ndarray:
        """(C, P) share of experts that two languages have in common for the same concept."""
        return nulls.matched(self.counts, self.pairs) / self.table.k

    @cached_property
    def chance(self) -> float:
        """K / N: what two random expert sets share."""
        return self.table.k / self.table.space.num_units

    def codes(self, pair: int) -> tuple[str, str]:
        one, other = self.pairs[pair]
        return self.table.languages[one], self.table.languages[other]

    def interval(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the mean over concepts of `values` (C, ...): concepts that depend on each other count as one."""
        flat = values.reshape(len(values), -1)
        low, high = bootstrap_interval(flat, clusters=self.table.clusters, num_resamples=self.bootstrap, seed=self.seed)
        return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])

    def per_pair(
        self,
        metric: str,
        values: np.ndarray,
        chance: np.ndarray | float | None = None,
        p: Sequence[float] | None = None,
        **columns: Any,
    ) -> Iterator[Row]:
        """One row per pair, means over concepts of `values` (C, P) with their intervals; then `summaries`."""
        means = values.mean(0)
        low, high = self.interval(values)
        expected = None if chance is None else np.broadcast_to(chance, means.shape)
        for pair, mean in enumerate(means):
            language, other = self.codes(pair)
            yield Row(
                metric=metric,
                value=mean,
                language=language,
                other_language=other,
                chance=None if expected is None else expected[pair],
                low=low[pair],
                high=high[pair],
                p=None if p is None else p[pair],
                **columns,
            )
        yield from self.summaries(metric, values, chance, **columns)

    def summaries(
        self, metric: str, values: np.ndarray, chance: np.ndarray | float | None = None, **columns: Any
    ) -> Iterator[Row]:
        """Rows over all pairs and over each stratum of pairs: mean over concepts, and each concept."""
        natural = [places for name, places in self.members.items() if name not in ("clone", "with_clone")]
        everything = np.concatenate(natural or list(self.members.values()))
        expected = None if chance is None else np.broadcast_to(chance, values.shape[1:])
        for condition, places in ((None, everything), *self.members.items()):
            level = None if expected is None else float(expected[places].mean())
            yield self.over_all(metric, values[:, places], level, condition=condition, **columns)
            yield from self.by_concept(metric, values[:, places], level, condition=condition, **columns)

    def per_language(self, metric: str, values: np.ndarray, chance: np.ndarray | float) -> Iterator[Row]:
        """One row per language, means over concepts of `values` (C, L) with their intervals; then `over_all`."""
        expected = np.broadcast_to(chance, values.shape[1:])
        low, high = self.interval(values)
        for place, language in enumerate(self.table.languages):
            yield Row(
                metric=metric,
                value=values[:, place].mean(),
                language=language,
                chance=expected[place],
                low=low[place],
                high=high[place],
            )
        yield self.over_all(metric, values, float(expected.mean()))

    def over_all(self, metric: str, values: np.ndarray, chance: float | None = None, **columns: Any) -> Row:
        """One row: the mean of `values` (C, ...) with the interval over concepts."""
        by_concept = values.reshape(len(values), -1).mean(1)
        low, high = self.interval(by_concept)
        mean = float(by_concept.mean())
        return Row(metric=metric, value=mean, chance=chance, low=float(low), high=float(high), **columns)

    def by_concept(self, metric: str, values: np.ndarray, chance: float | None = None, **columns: Any) -> Iterator[Row]:
        """One row for each concept: the mean of its `values` (C, ...)."""
        for concept, value in zip(self.table.concepts, values.reshape(len(values), -1).mean(1), strict=True):
            yield Row(metric=metric, value=value, concept=concept, chance=chance, **columns)


def overlap_rows(sharing: Sharing) -> Iterator[Row]:
    """`shared` and `shared_shuffled` (pairs, summaries), `shared_mismatched` (pairs, all)."""
    table, k = sharing.table, sharing.table.k
    totals = np.rint(sharing.shared * k).astype(int).sum(0)
    p = [nulls.overlap_p(int(total), table.space.num_units, k, len(table.concepts)) for total in totals]
    yield from sharing.per_pair("shared", sharing.shared, sharing.chance, p)
    num_units = table.space.num_units
    shuffled = [
        nulls.matched(nulls.intersections(units, units, num_units), sharing.pairs) / k for units in table.shuffled
    ]
    yield from sharing.per_pair("shared_shuffled", np.mean(shuffled, axis=0), sharing.chance)
    unlike = nulls.mismatched(sharing.counts, sharing.pairs, table.clusters)
    if unlike is not None:
        yield from sharing.per_pair("shared_mismatched", unlike / k, sharing.chance)


def profile_rows(sharing: Sharing) -> Iterator[Row]:
    """`shared_units` per layer, `expert_units` per layer and per kind."""
    table = sharing.table
    layers = np.array([site.layer for site in table.space.sites])
    expected = nulls.stratified(table.experts.units, sharing.pairs, table.space.offsets).mean((0, 1)) / table.k
    unit_layer = np.repeat(layers, np.diff(table.space.offsets))
    by_layer = np.stack([_shared_per_layer(table, pair, unit_layer) for pair in sharing.pairs.tolist()]).mean(0)
    sizes = np.bincount(unit_layer + 1, minlength=by_layer.shape[1])
    experts = np.bincount(unit_layer[table.experts.units.reshape(-1)] + 1, minlength=len(sizes))
    low, high = sharing.interval(by_layer)
    for layer in np.unique(layers).tolist():
        yield Row(
            metric="shared_units",
            value=by_layer[:, layer + 1].mean(),
            layer=layer,
            chance=expected[layers == layer].sum(),
            low=low[layer + 1],
            high=high[layer + 1],
        )
        yield Row(
            metric="expert_units",
            value=experts[layer + 1] / experts.sum(),
            layer=layer,
            chance=sizes[layer + 1] / sizes.sum(),
        )
    kinds, size_of_kind = np.unique(table.unit_kind, return_counts=True)
    chosen = table.unit_kind[table.experts.units.reshape(-1)]
    for kind, size in zip(kinds.tolist(), size_of_kind.tolist(), strict=True):
        yield Row(metric="expert_units", value=(chosen == kind).mean(), kind=kind, chance=size / table.space.num_units)


def _shared_per_layer(table: ExpertTable, pair: Sequence[int], unit_layer: np.ndarray) -> np.ndarray:
    """(C, layers + 1) shared units of two languages by layer as shares of K; layer -1 comes first."""
    one, other = (table.experts.units[place] for place in pair)
    num_layers = int(unit_layer.max()) + 2
    found = np.zeros((len(one), num_layers))
    for concept, (left, right) in enumerate(zip(one, other, strict=True)):
        both = np.intersect1d(left, right, assume_unique=True)
        found[concept] = np.bincount(unit_layer[both] + 1, minlength=num_layers)
    return found / table.k


def curve_rows(sharing: Sharing) -> Iterator[Row]:
    """`shared_by_<m>`: units that are experts in at least m languages, as a share of K, for m = 2 ... L."""
    table = sharing.table
    num_languages, num_concepts, k = table.experts.units.shape
    reach = np.zeros((num_concepts, num_languages + 1))
    for concept in range(num_concepts):
        _, spread = np.unique(table.experts.units[:, concept], return_counts=True)
        reach[concept] = np.bincount(spread, minlength=num_languages + 1)[::-1].cumsum()[::-1] / k
    for threshold in range(2, num_languages + 1):
        expected = nulls.at_least(num_languages, threshold, table.space.num_units, k)
        yield sharing.over_all(f"shared_by_{threshold}", reach[:, threshold], expected)


def quality_rows(sharing: Sharing) -> Iterator[Row]:
    """`ap_best`, `ap_experts` beside the same of experts by shuffled labels; `ap_heldout` beside other concepts."""
    table = sharing.table
    places = np.arange(len(table.languages))
    own = table.experts.ap[places, :, :, places]  # (L, C, K)
    null = table.shuffled_ap.mean(0)
    found = [("ap_best", own[:, :, 0], null[:, :, 0]), ("ap_experts", own.mean(-1), null.mean(-1))]
    if table.halves is not None:
        held = np.mean([experts.ap[places, :, :, places].mean(-1) for experts in table.halves.experts], axis=0)
        others = np.mean(
            [experts.ap_of_others[places, :, :, places].mean(-1) for experts in table.halves.experts], axis=0
        )
        found.append(("ap_heldout", held, others if len(table.concepts) > 1 else table.prevalence))
    for metric, values, chance in found:
        yield from sharing.per_language(metric, values.T, chance.mean(1))
