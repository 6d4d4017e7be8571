"""What holds between disjoint halves of the sentences: the statistics that decide whether concepts share units.

Experts that two languages choose on *the same* parallel sentences agree wherever translations look alike, with no unit
of the concept at all. Here language 1 ranks units by one half of the sentences and language 2 by the other half, so no
sentence meets its own translation, and what different concepts have in common in the same way is taken off (without
bias where a sentence has one half for all concepts, see `ConceptSet`). Every function takes the table of
`analysis.experts.table` with halves and gives rows.

Shapes:  L languages   C concepts   K experts   P pairs of languages
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from analysis.base import Row
from analysis.experts import nulls
from analysis.experts.sharing import Sharing
from analysis.statistics import mean_above_zero


def rank_rows(sharing: Sharing) -> Iterator[Row]:
    """`rank_transfer`, `rank_ceiling` and `normalized`: agreement of whole rankings, no K."""
    table = sharing.table
    if table.halves is None:
        return
    excess = rank_transfer(table.halves.correlation, sharing.pairs, table.clusters)
    ceiling = rank_transfer(table.halves.correlation, _alone(table.languages), table.clusters)
    if excess is None or ceiling is None:
        return
    p = [mean_above_zero(values, table.clusters) for values in excess.T]
    yield from sharing.per_pair("rank_transfer", excess, 0.0, p)
    yield from sharing.per_language("rank_ceiling", ceiling, 0.0)
    yield from sharing.by_concept("rank_ceiling", ceiling, 0.0)
    yield from _normalized(sharing, excess, ceiling[:, sharing.pairs].mean(-1))


def rank_transfer(correlation: np.ndarray, pairs: np.ndarray, clusters: np.ndarray) -> np.ndarray | None:
    """R (C, P) from `Halves.correlation` (L, C, L, C): the same concept in two languages minus other concepts.

    None where all concepts depend on each other, so that there is no other concept.
    """
    return _minus_mismatched(nulls.both_ways(correlation), pairs, clusters)


def _normalized(sharing: Sharing, excess: np.ndarray, ceiling: np.ndarray) -> Iterator[Row]:
    """Ratio of means over concepts, (C, P) each, where the interval of the ceiling is above 0; else there is no row."""
    for pair in (*range(len(sharing.pairs)), None):
        above = excess.mean(1) if pair is None else excess[:, pair]
        room = ceiling.mean(1) if pair is None else ceiling[:, pair]
        if float(sharing.interval(room)[0]) <= 0.0:
            continue
        ratio = float(above.mean() / room.mean())
        # What each concept adds to the ratio (delta method), so that its interval covers like that of a mean.
        low, high = sharing.interval(ratio + (above - ratio * room) / room.mean())
        language, other = (None, None) if pair is None else sharing.codes(pair)
        yield Row(
            metric="normalized",
            value=ratio,
            language=language,
            other_language=other,
            chance=0.0,
            low=float(low),
            high=float(high),
        )


def depth_rows(sharing: Sharing, depths: Sequence[int]) -> Iterator[Row]:
    """`heldout_shared` by K, and `ceiling` at the main K: overlap of expert sets between the halves."""
    table = sharing.table
    if table.halves is None:
        return
    for depth in sorted({*depths, table.k}):
        one, other = (np.ascontiguousarray(units[..., :depth]) for units in table.halves.deep)
        counts = nulls.both_ways(nulls.intersections(one, other, table.space.num_units)) / depth
        excess = _minus_mismatched(counts, sharing.pairs, table.clusters)
        if excess is not None and depth in depths:
            yield from sharing.summaries("heldout_shared", excess, 0.0, k=depth)
        if depth == table.k:
            itself = nulls.matched(counts, _alone(table.languages))
            unlike = nulls.mismatched(counts, _alone(table.languages), table.clusters)
            chance = np.full(len(table.languages), sharing.chance) if unlike is None else unlike.mean(0)
            for place, language in enumerate(table.languages):
                value = float(itself[:, place].mean())
                yield Row(metric="ceiling", value=value, language=language, chance=float(chance[place]))
            yield sharing.over_all("ceiling", itself, float(chance.mean()))


def transfer_rows(sharing: Sharing) -> Iterator[Row]:
    """`transfer` and `transfer_gain`, directed; on held-out sentences if the table has halves."""
    table = sharing.table
    sets = table.halves.experts if table.halves else (table.experts,)
    same = np.mean([experts.ap.mean(2) for experts in sets], axis=0)  # (L, C, L)
    others = np.mean([experts.ap_of_others.mean(2) for experts in sets], axis=0)
    between = ~np.eye(len(table.languages), dtype=bool)
    many = len(table.concepts) > 1
    for one, source in enumerate(table.languages):
        for other, target in enumerate(table.languages):
            if one == other:
                continue
            values = np.stack([same[one, :, other], same[one, :, other] - others[one, :, other]], axis=1)
            low, high = sharing.interval(values)
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
        yield from sharing.by_concept("transfer_gain", by_concept - control, 0.0)


def _alone(languages: Sequence[str]) -> np.ndarray:
    """(L, 2) every language with itself."""
    places = np.arange(len(languages))
    return np.stack([places, places], axis=1)


def _minus_mismatched(table: np.ndarray, pairs: np.ndarray, clusters: np.ndarray) -> np.ndarray | None:
    """Same concept minus other concepts, (C, P), from (L, C, L, C); None where all concepts depend on each other."""
    unlike = nulls.mismatched(table, pairs, clusters)
    return None if unlike is None else nulls.matched(table, pairs) - unlike
