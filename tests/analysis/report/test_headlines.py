"""Live keys: which rows become scalars, and what happens above the budget."""

from __future__ import annotations

import logging

import pytest

from analysis.base import Row
from analysis.report.headlines import scalars, within_budget


def test_overall_rows_bring_chance_and_step_zero_along() -> None:
    rows = [Row(metric="shared", value=0.2, chance=0.01)]
    first = [Row(metric="shared", value=0.05, chance=0.01)]
    assert scalars("overlap", rows, first) == {
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
    assert scalars("probe", rows) == {
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
    assert scalars("steering", rows) == {
        "steering/concept_hit/experts_500": 0.5,
        "steering/concept_hit/none": 0.1,
    }


def test_above_the_budget_layers_go_first_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    rows = [Row(metric="a", value=1.0)]
    rows += [Row(metric="b", value=1.0, layer=layer) for layer in range(24)]
    rows += [Row(metric="c", value=1.0, language=language) for language in ("de", "en", "es")]
    with caplog.at_level(logging.WARNING):
        kept = within_budget({"x": scalars("x", rows)}, budget=10)
    assert set(kept) == {"x/a", "x/c/de", "x/c/en", "x/c/es"}
    assert "x/b/* stays in the result table only" in caplog.text


def test_within_budget_nothing_is_dropped() -> None:
    values = {"x": {"x/a": 1.0}, "y": {"y/b/L00": 2.0}}
    assert within_budget(values, budget=2) == {"x/a": 1.0, "y/b/L00": 2.0}
