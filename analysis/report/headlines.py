"""Which of an analysis's rows are worth a live curve, and under which key.

A run may have thousands of rows a step; a live page stays quick below a few hundred keys (300 by default). Numbers
without concept and seed become scalars: overall first, then one per condition and K of steering or kind of site, one
per language, one per layer. Pairs of languages, concepts and seeds stay in the result table and in figures.

    overlap/shared            overlap/shared_chance     overlap/shared_step0
    language_probe/recall/es  language_probe/accuracy/L07  language_probe/accuracy/emb
    steering/concept_hit/experts_500
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from analysis.base import Row

log = logging.getLogger(__name__)

KEY_BUDGET = 300


def layer_label(layer: int) -> str:
    """`emb` for the embeddings, `L07` for block 7."""
    return "emb" if layer < 0 else f"L{layer:02d}"


def scalars(analysis: str, rows: Sequence[Row], first: Sequence[Row] = ()) -> dict[str, float]:
    """Scalars of one analysis at one step; `first` are the rows of the untrained network (step 0) if there are any.

    Overall numbers bring their chance level and their step-0 level along.
    """
    start = {row.metric: row.value for row in first if _is_overall(row)}
    overall: dict[str, float] = {}
    by_kind: dict[str, float] = {}
    by_language: dict[str, float] = {}
    by_layer: dict[str, float] = {}
    for row in rows:
        key = f"{analysis}/{row.metric}"
        if _is_overall(row):
            overall[key] = row.value
            if row.chance is not None:
                overall[f"{key}_chance"] = row.chance
                if row.metric in start:
                    overall[f"{key}_step0"] = start[row.metric]
        elif _is_overall(replace(row, kind=None, condition=None, k=None)):
            by_kind["/".join((key, _label(row)))] = row.value
        elif _is_overall(replace(row, layer=None, language=None)):
            if row.language is not None and row.layer is None:
                by_language[f"{key}/{row.language}"] = row.value
            elif row.layer is not None and row.language is None:
                by_layer[f"{key}/{layer_label(row.layer)}"] = row.value
    return {**overall, **by_kind, **by_language, **by_layer}


def within_budget(scalars_of: Mapping[str, Mapping[str, float]], budget: int = KEY_BUDGET) -> dict[str, float]:
    """Join the scalars of all analyses, dropping per-layer and then per-language keys of the largest analyses first.

    Nothing is dropped silently: what does not fit is named once in the log and stays in the result table.
    """
    kept = {name: dict(values) for name, values in scalars_of.items()}
    while sum(map(len, kept.values())) > budget:
        name = max(kept, key=lambda n: len(kept[n]))
        groups: dict[tuple[bool, str], list[str]] = {}
        for key in kept[name]:
            if key.count("/") == 2:
                metric, _, last = key.rpartition("/")
                groups.setdefault((last.startswith("L") or last == "emb", metric), []).append(key)
        if not groups:
            break
        largest = max(groups, key=lambda g: (g[0], len(groups[g])))
        _say_once(f"live keys are over the budget of {budget}: {largest[1]}/* stays in the result table only")
        for key in groups[largest]:
            del kept[name][key]
    return {key: value for values in kept.values() for key, value in values.items()}


@cache
def _say_once(message: str) -> None:
    log.warning(message)


def _label(row: Row) -> str:
    """`attn.q`, `none` or `experts_500`."""
    return "_".join(str(part) for part in (row.kind, row.condition, row.k) if part is not None)


def _is_overall(row: Row) -> bool:
    belongs = (row.layer, row.kind, row.condition, row.k, row.concept, row.language, row.other_language, row.seed)
    return all(field is None for field in belongs)
