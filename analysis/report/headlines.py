"""Which of an analysis's rows are worth a live curve, in which order of importance, and under which key.

A run may have thousands of rows a step; a live page stays quick below a few hundred keys (300 by default). Numbers
without concept and seed become scalars, most important first: overall, the analysis's headlines (`Analysis.headlines`)
before its other metrics; one curve over layers, of the first headline that has one; conditions and K of steering, kinds
of site; languages. The budget cuts from the end of that order. Further curves over layers are strips of one key each,
see `analysis.tracking.media`; pairs of languages, concepts and seeds stay in the result table and in figures. Chance
and the step-0 level are no curves of their own: they stand in the panel of their metric and in the page's summary.

    overlap/shared            language_probe/accuracy/L07  language_probe/accuracy/emb
    language_probe/recall/es  steering/concept_hit/experts_500
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from analysis.base import Row, find_class
from analysis.results import ResultTable

log = logging.getLogger(__name__)

FIELDS = ("layer", "kind", "condition", "k", "concept", "language", "other_language", "seed")
"""What a number belongs to; an overall number has none of them."""
KEY_BUDGET = 300
"""Scalar keys of a step that a page of W&B is good for."""
OVERALL, CURVE, CONDITIONS, LANGUAGES = range(4)
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


def headlines_of(class_of: str) -> tuple[str, ...]:
    """Headlines of an analysis class, by its name; none of a class of one's own that nobody imported."""
    from analysis import measures  # noqa: F401  (heavy; its classes must be known)

    found = find_class(class_of)
    return found.headlines if found is not None else ()


def scalars(analysis: str, rows: Sequence[Row], headlines: Sequence[str] = ()) -> list[Group]:
    """Groups of scalars of one analysis at one step; metrics that `headlines` names come first."""
    order = {metric: place for place, metric in enumerate(dict.fromkeys([*headlines, *(row.metric for row in rows)]))}
    curve = next((m for m in order if any(row.metric == m and _is_of_a_layer(row) for row in rows)), None)
    groups: dict[tuple[int, str], dict[str, float]] = {}

    def add(rank: int, metric: str, key: str, value: float) -> None:
        groups.setdefault((rank, metric), {})[f"{analysis}/{metric}{key}"] = value

    for row in rows:
        if is_overall(row):
            add(OVERALL, row.metric, "", row.value)
        elif is_overall(replace(row, kind=None, condition=None, k=None)):
            add(CONDITIONS, row.metric, f"/{_label(row)}", row.value)
        elif is_overall(replace(row, language=None)):
            add(LANGUAGES, row.metric, f"/{row.language}", row.value)
        elif row.metric == curve and _is_of_a_layer(row) and row.layer is not None:
            add(CURVE, row.metric, f"/{layer_label(row.layer)}", row.value)
    ordered = sorted(groups, key=lambda group: (group[0], order[group[1]]))
    return [Group(rank, f"{analysis}/{metric}", groups[rank, metric]) for rank, metric in ordered]


def levels(table: ResultTable, analysis: str) -> dict[str, float]:
    """Constants beside the curves: chance and step 0 of the overall numbers, of the newest step of an analysis."""
    steps = [step for step, name in table.entries() if name == analysis]
    newest = [row for row in table.rows(steps[-1], analysis) if is_overall(row)] if steps else []
    found = {f"{analysis}/{row.metric}_chance": row.chance for row in newest if row.chance is not None}
    if newest and steps[0] == 0:
        start = {row.metric: row.value for row in table.rows(0, analysis) if is_overall(row)}
        found |= {f"{analysis}/{row.metric}_step0": start[row.metric] for row in newest if row.metric in start}
    return found


def within_budget(groups_of: Mapping[str, Sequence[Group]], budget: int = KEY_BUDGET) -> dict[str, float]:
    """Join the scalars of all analyses up to `budget` keys: ranks in order, and within a rank analyses in turn.

    What does not fit is named once, in one line, and stays in the result table.
    """
    placed = [
        (group.rank, place, number, group)
        for number, groups in enumerate(groups_of.values())
        for rank in range(LANGUAGES + 1)
        for place, group in enumerate(group for group in groups if group.rank == rank)
    ]
    queue = [group for *_, group in sorted(placed, key=lambda entry: entry[:3])]
    kept: dict[str, float] = {}
    for number, group in enumerate(queue):
        if len(kept) + len(group.values) > budget:
            names = ", ".join(dict.fromkeys(left.name for left in queue[number:]))
            _say_once(f"{budget} live keys: in the result table only: {names}")
            break
        kept |= group.values
    return kept


@cache
def _say_once(message: str) -> None:
    log.info(message)


def _is_of_a_layer(row: Row) -> bool:
    return row.layer is not None and is_overall(replace(row, layer=None))


def _label(row: Row) -> str:
    """`attn.q`, `none` or `experts_500`."""
    return "_".join(str(part) for part in (row.kind, row.condition, row.k) if part is not None)


def is_overall(row: Row) -> bool:
    """Whether a number belongs to the whole model, not to a layer, language or anything else."""
    return all(getattr(row, field) is None for field in FIELDS)
