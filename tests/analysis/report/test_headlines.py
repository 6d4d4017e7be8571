"""Live keys: which rows become scalars, and what happens above the budget."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from analysis import measures  # noqa: F401  (its classes must be known)
from analysis.base import Analysis, Row, find_class
from analysis.report.headlines import KEY_BUDGET, Group, is_overall, layer_label, levels, scalars, within_budget
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId
from callbacks.analyses import TRAINING_KEYS


def keys(groups: Sequence[Group]) -> dict[str, float]:
    return {key: value for group in groups for key, value in group.values.items()}


@dataclass(kw_only=True)
class Given(Analysis):
    """Rows as they are given."""

    rows: list[Row] = field(default_factory=list)
    default_name: ClassVar[str] = "overlap"

    def measure(self, snapshot: object) -> Iterable[Row]:
        return self.rows

    def settings(self) -> dict[str, object]:
        return {"analysis": "Given", "version": 1}


def test_chance_and_step_zero_are_constants_of_the_page_and_no_curves(tmp_path: Path) -> None:
    table = ResultTable(tmp_path)
    for step, value in ((0, 0.05), (8, 0.1), (64, 0.2)):
        rows = [Row(metric="shared", value=value, chance=0.01), Row(metric="shared", value=0.3, layer=2, chance=0.1)]
        table.write(SnapshotId("run", step, step), Given(), rows, 1.0)
    assert keys(scalars("overlap", table.rows(64, "overlap"))) == {"overlap/shared": 0.2, "overlap/shared/L02": 0.3}
    assert levels(table, "overlap") == {"overlap/shared_chance": 0.01, "overlap/shared_step0": 0.05}


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
    rows += [Row(metric="b", value=1.0, language=f"l{number}") for number in range(24)]
    rows += [Row(metric="curve", value=1.0, layer=layer) for layer in range(4)]
    rows += [Row(metric="c", value=1.0, language=language) for language in ("de", "en", "es")]
    groups = scalars("x", rows, headlines=["curve", "c"])
    with caplog.at_level(logging.INFO):
        kept = within_budget({"x": groups}, budget=10)
    assert list(kept) == ["x/a", *(f"x/curve/L0{layer}" for layer in range(4)), "x/c/de", "x/c/en", "x/c/es"]
    [record] = caplog.records
    assert record.message.endswith("in the result table only: x/b")


def test_within_budget_nothing_is_dropped() -> None:
    groups = {"x": [Group(0, "x/a", {"x/a": 1.0})], "y": [Group(3, "y/b", {"y/b/L00": 2.0})]}
    assert within_budget(groups, budget=2) == {"x/a": 1.0, "y/b/L00": 2.0}


def test_at_24_layers_and_16_languages_every_headline_curve_survives_within_the_budget() -> None:
    """Eight analyses with the rows of the real run: each has overall numbers, curves over layers, and languages."""
    groups = {}
    for name in "abcdefgh":
        rows = [Row(metric=f"m{i}", value=1.0, chance=0.1) for i in range(8)]
        for metric in ("other", "headline", "further"):
            rows += [Row(metric=metric, value=0.5, layer=layer, chance=0.1) for layer in range(-1, 24)]
            rows += [Row(metric=metric, value=0.5, language=f"l{code}") for code in range(16)]
        groups[name] = scalars(name, rows, ["headline"])
    kept = within_budget(groups)
    assert len(kept) <= KEY_BUDGET
    for name in groups:
        assert {f"{name}/headline/{layer_label(layer)}" for layer in range(-1, 24)} <= set(kept)
        assert sum(key.startswith(f"{name}/m") for key in kept) == 8
    assert not any(key.endswith(("_chance", "_step0")) for key in kept)


def test_the_demo_scaled_to_24_layers_and_16_languages_keeps_every_curve_within_the_budget() -> None:
    """`demo_rows.json`: which rows each analysis of the demo has, without layers and languages."""
    shapes = json.loads((Path(__file__).parent / "demo_rows.json").read_text(encoding="utf-8"))
    groups, wanted, curves = {}, set(), 0
    for name, described in shapes.items():
        rows = []
        for shape in described["rows"]:
            fields = {key: value for key, value in shape.items() if not key.startswith("by_")}
            layers = range(-1, 24) if "by_layer" in shape else [None]
            languages = [f"l{number}" for number in range(16)] if "by_language" in shape else [None]
            rows += [Row(value=0.5, layer=layer, language=code, **fields) for layer in layers for code in languages]
        found = find_class(described["class"])
        assert found is not None
        groups[name] = scalars(name, rows, found.headlines)
        overall = {row.metric for row in rows if is_overall(row)}
        wanted |= {f"{name}/{metric}" for metric in found.headlines if metric in overall}
        by_layer = {row.metric for row in rows if row.layer is not None and row.language is None}
        for metric in [metric for metric in found.headlines if metric in by_layer][:1]:
            wanted |= {f"{name}/{metric}/{layer_label(layer)}" for layer in range(-1, 24)}
            curves += 1
    assert curves == 6
    others = TRAINING_KEYS + 2 * 16 + len(shapes) + 2  # training, loss of every language, cost of the analyses
    kept = within_budget(groups, KEY_BUDGET - others)
    assert wanted <= set(kept)
    assert len(kept) + others <= KEY_BUDGET
