"""From expert tables to rows: how much of their experts languages share, beside what chance, surface and noise explain.

Every function takes the table of `analysis.experts.table` and gives rows; `analysis.measures.overlap` puts them
together and says what each metric means. Intervals are over concepts.

Shapes:  L languages   C concepts   K experts   P pairs of languages   S sites
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from analysis.base import Row
from analysis.experts import nulls
from analysis.experts.table import ExpertTable
from analysis.statistics import bootstrap_interval


@dataclass(frozen=True)
class Sharing:
    """An expert table with its pairs of languages and the settings of the intervals."""

    table: ExpertTable
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

    @cached_property
    def unlike(self) -> np.ndarray | None:
        """(C, P) the same between different concepts; None if there is only one concept."""
        counts = nulls.mismatched(self.counts, self.pairs)
        return None if counts is None else counts / self.table.k

    def codes(self, pair: int) -> tuple[str, str]:
        one, other = self.pairs[pair]
        return self.table.languages[one], self.table.languages[other]

    def per_pair(
        self,
        metric: str,
        values: np.ndarray,
        chance: np.ndarray | float | None = None,
        p: Sequence[float] | None = None,
    ) -> Iterator[Row]:
        """One row per pair and one over all pairs, means over concepts of `values` (C, P) with their intervals."""
        means = values.mean(0)
        low, high = bootstrap_interval(values, num_resamples=self.bootstrap, seed=self.seed)
        expected = None if chance is None else np.broadcast_to(chance, means.shape)
        for pair, mean in enumerate(means):
            language, other = self.codes(pair)
            yield Row(
                metric=metric,
                value=float(mean),
                language=language,
                other_language=other,
                chance=None if expected is None else float(expected[pair]),
                low=float(low[pair]),
                high=float(high[pair]),
                p=None if p is None else float(p[pair]),
            )
        yield self.over_all(metric, values, None if expected is None else float(expected.mean()))

    def over_all(self, metric: str, values: np.ndarray, chance: float | None = None) -> Row:
        """One row: the mean of `values` (C, ...) with the interval over concepts."""
        by_concept = values.reshape(len(values), -1).mean(1)
        low, high = bootstrap_interval(by_concept, num_resamples=self.bootstrap, seed=self.seed)
        return Row(metric=metric, value=float(by_concept.mean()), chance=chance, low=float(low), high=float(high))


def overlap_rows(sharing: Sharing) -> Iterator[Row]:
    """`shared` (pairs, all, concepts), `jaccard`, `kappa`, `shared_stratified`, `_mismatched`, `_excess`."""
    table, k = sharing.table, sharing.table.k
    totals = np.rint(sharing.shared * k).astype(int).sum(0)
    p = [nulls.overlap_p(int(total), table.space.num_units, k, len(table.concepts)) for total in totals]
    yield from sharing.per_pair("shared", sharing.shared, sharing.chance, p)
    for place, concept in enumerate(table.concepts):
        yield Row(metric="shared", value=float(sharing.shared[place].mean()), concept=concept, chance=sharing.chance)
    yield from sharing.per_pair(
        "jaccard", sharing.shared / (2.0 - sharing.shared), sharing.chance / (2 - sharing.chance)
    )
    if sharing.chance < 1.0:
        yield from sharing.per_pair("kappa", (sharing.shared - sharing.chance) / (1.0 - sharing.chance), 0.0)
    expected = nulls.stratified(table.experts.units, sharing.pairs, table.space.offsets).sum(-1) / k
    yield from sharing.per_pair("shared_stratified", expected, sharing.chance)
    if sharing.unlike is not None:
        yield from sharing.per_pair("shared_mismatched", sharing.unlike, sharing.chance)
        yield from sharing.per_pair("shared_excess", sharing.shared - sharing.unlike, 0.0)


def profile_rows(sharing: Sharing) -> Iterator[Row]:
    """`shared_units` per layer, `expert_units` per layer and per kind."""
    table = sharing.table
    layers = np.array([site.layer for site in table.space.sites])
    expected = nulls.stratified(table.experts.units, sharing.pairs, table.space.offsets).mean((0, 1)) / table.k
    unit_layer = np.repeat(layers, np.diff(table.space.offsets))
    by_layer = np.stack([_shared_per_layer(table, pair, unit_layer) for pair in sharing.pairs.tolist()]).mean(0)
    sizes = np.bincount(unit_layer + 1, minlength=by_layer.shape[1])
    experts = np.bincount(unit_layer[table.experts.units.reshape(-1)] + 1, minlength=len(sizes))
    for layer in np.unique(layers).tolist():
        low, high = bootstrap_interval(by_layer[:, layer + 1], num_resamples=sharing.bootstrap, seed=sharing.seed)
        yield Row(
            metric="shared_units",
            value=float(by_layer[:, layer + 1].mean()),
            layer=layer,
            chance=float(expected[layers == layer].sum()),
            low=float(low),
            high=float(high),
        )
        yield Row(
            metric="expert_units",
            value=float(experts[layer + 1] / experts.sum()),
            layer=layer,
            chance=float(sizes[layer + 1] / sizes.sum()),
        )
    kinds, size_of_kind = np.unique(table.unit_kind, return_counts=True)
    chosen = table.unit_kind[table.experts.units.reshape(-1)]
    for kind, size in zip(kinds.tolist(), size_of_kind.tolist(), strict=True):
        yield Row(
            metric="expert_units",
            value=float((chosen == kind).mean()),
            kind=kind,
            chance=size / table.space.num_units,
        )


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
    """`ap_best` and `ap_experts` per language and over all, beside the prevalence."""
    table = sharing.table
    places = np.arange(len(table.languages))
    own = table.experts.ap[places, :, :, places]
    for metric, values in (("ap_best", own[:, :, 0]), ("ap_experts", own.mean(-1))):
        for place, language in enumerate(table.languages):
            low, high = bootstrap_interval(values[place], num_resamples=sharing.bootstrap, seed=sharing.seed)
            yield Row(
                metric=metric,
                value=float(values[place].mean()),
                language=language,
                chance=float(table.prevalence[place].mean()),
                low=float(low),
                high=float(high),
            )
        yield sharing.over_all(metric, values.T, float(table.prevalence.mean()))


def transfer_rows(sharing: Sharing) -> Iterator[Row]:
    """`transfer` and `transfer_gain`, directed; on held-out sentences if the table has halves."""
    table = sharing.table
    sets = table.halves or (table.experts,)
    same = np.mean([experts.ap.mean(2) for experts in sets], axis=0)
    others = np.mean([experts.ap_of_others.mean(2) for experts in sets], axis=0)
    num_languages = len(table.languages)
    between = ~np.eye(num_languages, dtype=bool)
    many = len(table.concepts) > 1
    for one, source in enumerate(table.languages):
        for other, target in enumerate(table.languages):
            if one == other:
                continue
            values = np.stack([same[one, :, other], same[one, :, other] - others[one, :, other]], axis=1)
            low, high = bootstrap_interval(values, num_resamples=sharing.bootstrap, seed=sharing.seed)
            chances = (float(others[one, :, other].mean()) if many else float(table.prevalence[other].mean()), 0.0)
            for place, metric in enumerate(("transfer", "transfer_gain") if many else ("transfer",)):
                yield Row(
                    metric=metric,
                    value=float(values[:, place].mean()),
                    language=source,
                    other_language=target,
                    chance=chances[place],
                    low=float(low[place]),
                    high=float(high[place]),
                )
    by_concept = np.moveaxis(same, 1, 0)[:, between]
    control = np.moveaxis(others, 1, 0)[:, between]
    yield sharing.over_all("transfer", by_concept, float(control.mean() if many else table.prevalence.mean()))
    if many:
        yield sharing.over_all("transfer_gain", by_concept - control, 0.0)


def halves_rows(sharing: Sharing) -> Iterator[Row]:
    """`shared_halves`, `ceiling` and `normalized`: overlap against what the noise of the sentences allows."""
    table = sharing.table
    if table.halves is None:
        return
    counts = nulls.intersections(table.halves[0].units, table.halves[1].units, table.space.num_units)
    reverse = np.moveaxis(counts, (0, 1), (2, 3))
    across = (nulls.matched(counts, sharing.pairs) + nulls.matched(reverse, sharing.pairs)) / (2 * table.k)
    places = np.arange(len(table.languages))
    itself = nulls.matched(counts, np.stack([places, places], axis=1)) / table.k
    ceiling = itself[:, sharing.pairs].mean(-1)
    both = [nulls.mismatched(part, sharing.pairs) for part in (counts, reverse)]
    null = None if both[0] is None or both[1] is None else (both[0] + both[1]) / (2 * table.k)
    yield from sharing.per_pair("shared_halves", across, sharing.chance if null is None else null.mean(0))
    for place, language in enumerate(table.languages):
        yield Row(metric="ceiling", value=float(itself[:, place].mean()), language=language, chance=sharing.chance)
    yield sharing.over_all("ceiling", itself, sharing.chance)
    expected = np.full_like(across, sharing.chance) if null is None else null
    yield from _normalized(sharing, across, ceiling, expected)


def _normalized(sharing: Sharing, across: np.ndarray, ceiling: np.ndarray, null: np.ndarray) -> Iterator[Row]:
    """(shared - null) / (ceiling - null) of means over concepts; where nothing is reliable there is no row."""
    chosen = np.random.default_rng(sharing.seed).integers(0, len(across), (sharing.bootstrap, len(across)))
    draws = [values[chosen].mean(1) for values in (across, ceiling, null)]
    for pair in (*range(len(sharing.pairs)), None):
        points = [
            float(values.mean(0)[pair] if pair is not None else values.mean()) for values in (across, ceiling, null)
        ]
        shared, top, floor = points
        if top - floor <= 0.0:
            continue
        resampled = [values[:, pair] if pair is not None else values.mean(1) for values in draws]
        room = resampled[1] - resampled[2]
        ratios = (resampled[0] - resampled[2])[room > 0.0] / room[room > 0.0]
        low, high = np.quantile(ratios, [0.025, 0.975]) if ratios.size else (None, None)
        language, other = sharing.codes(pair) if pair is not None else (None, None)
        yield Row(
            metric="normalized",
            value=(shared - floor) / (top - floor),
            language=language,
            other_language=other,
            chance=0.0,
            low=None if low is None else float(low),
            high=None if high is None else float(high),
        )


def shuffled_rows(sharing: Sharing) -> Iterator[Row]:
    """`shared_shuffled`: overlap of experts by shuffled labels."""
    table = sharing.table
    if not table.shuffled:
        return
    values = np.mean(
        [
            nulls.matched(nulls.intersections(units, units, table.space.num_units), sharing.pairs) / table.k
            for units in table.shuffled
        ],
        axis=0,
    )
    yield from sharing.per_pair("shared_shuffled", values, sharing.chance)


def correlation_rows(sharing: Sharing) -> Iterator[Row]:
    """`ap_correlation`: do two languages rank all units alike, beside different concepts."""
    table = sharing.table
    if table.ap_correlation is None:
        return
    unlike = nulls.mismatched(table.ap_correlation, sharing.pairs)
    values = nulls.matched(table.ap_correlation, sharing.pairs)
    yield from sharing.per_pair("ap_correlation", values, 0.0 if unlike is None else unlike.mean(0))
