"""Live keys: which rows become scalars, and what happens above the budget."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from analysis.base import Row
from analysis.report.headlines import KEY_BUDGET, Group, layer_label, scalars, within_budget


def keys(groups: Sequence[Group]) -> dict[str, float]:
    return {key: value for group in groups for key, value in group.values.items()}


def test_overall_rows_bring_chance_and_step_zero_along() -> None:
    rows = [Row(metric="shared", value=0.2, chance=0.01)]
    first = [Row(metric="shared", value=0.05, chance=0.01)]
    assert keys(scalars("overlap", rows, first)) == {
        "overlap/shared": 0.2,
        "overlap/shared_chance": 0.01,
        "overlap/shared_step0": 0.05,
    }


def test_languages_and_layers_become_keys_pairs_concepts_and_seeds_do_not() -> None:
    rows = [
        Row(metric="accuracy", value=0.9, layer=-1),
        Row(metric="accuracy", value=0.8, layer=7),
        Row(metric="recall", value=0.7, language="es"),
        Row(metric="accuracy", value=0.1, layer=7, seed=1),
        Row(metric="shared", value=0.1, language="de", other_language="en"),
        Row(metric="best_ap", value=0.1, language="de", concept="water"),
        Row(metric="recall", value=0.1, language="de", layer=3),
    ]
    assert keys(scalars("probe", rows)) == {
        "probe/accuracy/emb": 0.9,
        "probe/accuracy/L07": 0.8,
        "probe/recall/es": 0.7,
    }


def test_kinds_become_keys_where_nothing_else_tells_rows_apart() -> None:
    rows = [
        Row(metric="concept_hit", value=0.5, condition="experts", k=500, chance=0.1),
        Row(metric="concept_hit", value=0.1, condition="none"),
        Row(metric="concept_hit", value=0.7, condition="experts", k=500, language="es"),
        Row(metric="concept_hit", value=0.7, condition="experts", k=500, concept="water"),
    ]
    assert keys(scalars("steering", rows)) == {
        "steering/concept_hit/experts_500": 0.5,
        "steering/concept_hit/none": 0.1,
    }


def test_the_budget_cuts_from_the_end_of_the_order_and_says_so_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    rows = [Row(metric="a", value=1.0, chance=0.5)]
    rows += [Row(metric="b", value=1.0, layer=layer) for layer in range(24)]
    rows += [Row(metric="curve", value=1.0, layer=layer) for layer in range(4)]
    rows += [Row(metric="c", value=1.0, language=language) for language in ("de", "en", "es")]
    groups = scalars("x", rows, headlines=["curve"])
    with caplog.at_level(logging.INFO):
        kept = within_budget({"x": groups}, budget=10)
    assert list(kept) == ["x/a", *(f"x/curve/L0{layer}" for layer in range(4)), "x/c/de", "x/c/en", "x/c/es"]
    [record] = caplog.records
    assert record.message.endswith("x/b, x/a")


def test_within_budget_nothing_is_dropped() -> None:
    groups = {"x": [Group(0, "x/a", {"x/a": 1.0})], "y": [Group(4, "y/b", {"y/b/L00": 2.0})]}
    assert within_budget(groups, budget=2) == {"x/a": 1.0, "y/b/L00": 2.0}


def test_at_24_layers_and_16_languages_every_headline_curve_survives_within_the_budget() -> None:
    """Eight analyses with the rows of the real run: each has overall numbers, curves over layers, and languages."""
    groups = {}
    for name in "abcdefgh":
        rows = [Row(metric=f"m{i}", value=1.0, chance=0.1) for i in range(8)]
        for metric in ("other", "headline", "further"):
            rows += [Row(metric=metric, value=0.5, layer=layer, chance=0.1) for layer in range(-1, 24)]
            rows += [Row(metric=metric, value=0.5, language=f"l{code}") for code in range(16)]
        groups[name] = scalars(name, rows, rows[:8], ["headline"])
    kept = within_budget(groups)
    assert len(kept) <= KEY_BUDGET
    for name in groups:
        assert {f"{name}/headline/{layer_label(layer)}" for layer in range(-1, 24)} <= set(kept)
        assert sum(key.startswith(f"{name}/m") for key in kept) == 8
    assert not any(key.endswith(("_chance", "_step0")) for key in kept)
