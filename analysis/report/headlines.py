"""Which of an analysis's rows are worth a live curve, in which order of importance, and under which key.

A run may have thousands of rows a step; a live page stays quick below a few hundred keys (300 by default). Numbers
without concept and seed become scalars, most important first: overall; one curve over layers of the metric that the
analysis names first (`Analysis.headlines`); conditions and K of steering, kinds of site; languages; further curves over
layers; chance and step-0 levels. The budget cuts from the end of that order. Pairs of languages, concepts and seeds
stay in the result table and in figures.

    overlap/shared            overlap/shared_chance     overlap/shared_step0
    language_probe/recall/es  language_probe/accuracy/L07  language_probe/accuracy/emb
    steering/concept_hit/experts_500
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from analysis.base import Row

log = logging.getLogger(__name__)

KEY_BUDGET = 300
OVERALL, CURVE, CONDITIONS, LANGUAGES, LAYERS, LEVELS = range(6)
"""Ranks of groups of keys, most important first."""


@dataclass(frozen=True)
class Group:
    """Keys that belong together, such as the layers of one metric: all of them are kept, or none."""

    rank: int
    name: str
    values: dict[str, float]


def layer_label(layer: int) -> str:
    """`emb` for the embeddings, `L07` for block 7."""
    return "emb" if layer < 0 else f"L{layer:02d}"


def scalars(
    analysis: str, rows: Sequence[Row], first: Sequence[Row] = (), headlines: Sequence[str] = ()
) -> list[Group]:
    """Groups of scalars of one analysis at one step.

    Args:
        first: rows of the untrained network (step 0) if there are any: the level beside overall numbers.
        headlines: metrics, most important first; the others follow in the order of their rows.
    """
    order = {metric: place for place, metric in enumerate(dict.fromkeys([*headlines, *(row.metric for row in rows)]))}
    start = {row.metric: row.value for row in first if _is_overall(row)}
    curve = next((m for m in order if any(row.metric == m and _is_of_a_layer(row) for row in rows)), None)
    groups: dict[tuple[int, str], dict[str, float]] = {}

    def add(rank: int, metric: str, key: str, value: float) -> None:
        groups.setdefault((rank, metric), {})[f"{analysis}/{metric}{key}"] = value

    for row in rows:
        if _is_overall(row):
            add(OVERALL, row.metric, "", row.value)
            if row.chance is not None:
                add(LEVELS, row.metric, "_chance", row.chance)
                if row.metric in start:
                    add(LEVELS, row.metric, "_step0", start[row.metric])
        elif _is_overall(replace(row, kind=None, condition=None, k=None)):
            add(CONDITIONS, row.metric, f"/{_label(row)}", row.value)
        elif _is_overall(replace(row, language=None)):
            add(LANGUAGES, row.metric, f"/{row.language}", row.value)
        elif _is_of_a_layer(row) and row.layer is not None:
            rank = CURVE if row.metric == curve else LAYERS
            add(rank, row.metric, f"/{layer_label(row.layer)}", row.value)
    ordered = sorted(groups, key=lambda group: (group[0], order[group[1]]))
    return [Group(rank, f"{analysis}/{metric}", groups[rank, metric]) for rank, metric in ordered]


def within_budget(groups_of: Mapping[str, Sequence[Group]], budget: int = KEY_BUDGET) -> dict[str, float]:
    """Join the scalars of all analyses up to `budget` keys: ranks in order, and within a rank analyses in turn.

    What does not fit is named once, in one line, and stays in the result table.
    """
    placed = [
        (group.rank, place, number, group)
        for number, groups in enumerate(groups_of.values())
        for rank in range(LEVELS + 1)
        for place, group in enumerate(group for group in groups if group.rank == rank)
    ]
    queue = [group for *_, group in sorted(placed, key=lambda entry: entry[:3])]
    kept: dict[str, float] = {}
    for number, group in enumerate(queue):
        if len(kept) + len(group.values) > budget:
            names = ", ".join(dict.fromkeys(left.name for left in queue[number:]))
            _say_once(f"{budget} live keys: in the result table only (by layer, language or level): {names}")
            break
        kept |= group.values
    return kept


@cache
def _say_once(message: str) -> None:
    log.info(message)


def _is_of_a_layer(row: Row) -> bool:
    return row.layer is not None and _is_overall(replace(row, layer=None))


def _label(row: Row) -> str:
    """`attn.q`, `none` or `experts_500`."""
    return "_".join(str(part) for part in (row.kind, row.condition, row.k) if part is not None)


def _is_overall(row: Row) -> bool:
    belongs = (row.layer, row.kind, row.condition, row.k, row.concept, row.language, row.other_language, row.seed)
    return all(field is None for field in belongs)
