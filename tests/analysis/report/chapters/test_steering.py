"""The steering chapter and the live figures, from rows and texts of a hand-made experiment."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd
import pytest

from analysis.base import Attachment, Row
from analysis.measures.steering import Steering
from analysis.report.chapters.steering import effects
from analysis.report.chapters.steering_figures import (
    choose_texts,
    concept_hit_by_k,
    held_counts,
    hit_over_steps,
    live_steering_figures,
    output_language_bars,
    source_by_output,
    texts_figure,
)
from analysis.report.page import marked_pieces
from analysis.report.report import verdicts, write_report
from analysis.report.run import read_run
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId
from analysis.steering.generated import GeneratedText, Setting, Words, texts_table
from analysis.steering.judging import UNDETERMINED
from analysis.steering.rows import rows_of

CONCEPTS, SOURCES, OUTPUTS = ("water", "fire"), ("es", "ru"), ("en", "es", "ru")


def experiment(step: int) -> list[GeneratedText]:
    """Experts write in the other language and name the concept from step 8 on; nothing else ever does."""
    nothing = {concept: frozenset[str]() for concept in CONCEPTS}
    generated = [
        GeneratedText(Setting("none", None, None, None, 0, seed), (5, 6), "<b>plain</b>", "en", Words(nothing),
                      dict.fromkeys(CONCEPTS, 0.0))
        for seed in (1, 2)
    ]  # fmt: skip
    for condition, k, concept, source, seed in itertools.product(
        ("experts", "random"), (10, 100), CONCEPTS, SOURCES, (1, 2)
    ):
        setting = Setting(condition, concept, source, k, 0, seed)
        hit = condition == "experts" and step >= 8
        language = ("ru" if source == "es" else "es") if hit else UNDETERMINED
        text = f"say {concept} & more" if hit else ""
        words = Words({concept: frozenset({language} if hit else ())}, ((4, 4 + len(concept)),) if hit else ())
        bits = 2.0 if hit else None
        generated.append(GeneratedText(setting, (7, 8, 9), text, language, words, {concept: 0.0}, bits))
    return generated


@pytest.fixture
def table(tmp_path: Path) -> ResultTable:
    (tmp_path / "c.jsonl").write_text("")
    analysis = Steering(concepts=str(tmp_path / "c.jsonl"))
    table = ResultTable(tmp_path / "run" / "results")
    for step in (0, 8):
        written = experiment(step)
        clusters = {concept: number for number, concept in enumerate(CONCEPTS)}
        found = [*rows_of(written, clusters, SOURCES, OUTPUTS, seed=0), Attachment("texts", texts_table(written, [""]))]
        table.write(SnapshotId("run", step, step * 10), analysis, found, seconds=1.0)
    return table


@pytest.fixture
def frame(table: ResultTable) -> pd.DataFrame:
    return table.frame(["steering"])


def test_rows_follow_the_texts(frame: pd.DataFrame) -> None:
    last = frame[(frame["step"] == 8) & (frame["condition"] == "experts") & (frame["k"] == 10)]
    overall = last[last["language"].isna() & last["concept"].isna()].set_index("metric")
    assert overall.loc["concept_hit", "value"] == 1.0
    assert overall.loc["concept_hit", "chance"] == 0.0
    assert overall.loc["concept_in_other_language", "value"] == 1.0
    assert overall.loc["concept_in_source_language", "value"] == 0.0
    assert overall.loc["output_in_source_language", "value"] == 0.0
    assert overall.loc["bits_per_byte", "value"] == 2.0
    pair = last[(last["metric"] == "concept_in_language") & (last["language"] == "es")].set_index("other_language")
    assert pair["value"].to_dict() == {"en": 0.0, "es": 0.0, "ru": 1.0}
    assert "bits_per_byte" not in set(frame[(frame["condition"] == "random") & (frame["k"] == 10)]["metric"]), (
        "empty texts have none"
    )
    assert frame["value"].notna().all()


def test_figures_show_what_the_rows_say(frame: pd.DataFrame) -> None:
    assert held_counts(frame) == [10, 100]
    bars = output_language_bars(frame, 100)
    assert bars is not None
    heights = pd.concat(
        pd.DataFrame({"group": trace.x[0], "step": trace.x[1], "height": trace.y}) for trace in bars.data
    )
    sums = heights.groupby(["group", "step"])["height"].sum()
    assert set(heights["group"]) == {"nothing held", "es", "ru"}
    assert sums.to_numpy() == pytest.approx(1.0)
    by_k = concept_hit_by_k(frame, 8)
    assert by_k is not None
    lines = {trace.name: list(trace.y) for trace in by_k.data}
    assert lines == {"experts": [1.0, 1.0], "random": [0.0, 0.0]}
    over = hit_over_steps(frame)
    assert over is not None
    assert {trace.name: list(trace.y) for trace in over.data}["experts"] == [0.0, 1.0]
    matrix = source_by_output(frame, "output_language", 10, 8)
    assert matrix is not None
    assert list(matrix.layout.xaxis.categoryarray) == ["en", "es", "ru", UNDETERMINED]
    assert hit_over_steps(frame[frame["step"] == 8]) is None
    assert output_language_bars(frame, 7) is None
    assert source_by_output(frame, "output_language", 7, 8) is None
    assert concept_hit_by_k(frame, 3) is None


def test_the_table_of_effects_orders_conditions_by_k(frame: pd.DataFrame) -> None:
    first, _, last, differences = effects(frame, "steering")
    assert "step 0" in first.title
    assert [row[:2] for row in last.rows] == [
        ("none", ""),
        ("experts", "10"),
        ("random", "10"),
        ("experts", "100"),
        ("random", "100"),
    ]
    assert last.rows[1][2:4] == ("1.000", "0.68-1.00")
    assert [row[:3] for row in differences.rows[:2]] == [
        ("none", "10", "Concept hit"),
        ("none", "10", "Concept hit other"),
    ]
    assert differences.rows[0][3].startswith("+1.000 [")
    assert len({len(row) for row in last.rows} | {len(last.header)}) == 1


def test_a_step_with_other_counts_of_neurons_has_a_verdict_of_its_own(table: ResultTable, tmp_path: Path) -> None:
    analysis = Steering(concepts=str(tmp_path / "c.jsonl"))
    row = Row(metric="concept_hit_effect", value=0.2, condition="random", k=5, low=0.1, high=0.3)
    table.write(SnapshotId("run", 16, 160), analysis, [row], seconds=1.0)
    assert any(
        "K = 5, step 16: random +0.200 [+0.100, +0.300]" in said for said in verdicts(read_run(tmp_path / "run"))
    )


@pytest.mark.parametrize(
    "bounds", [{}, {"low": 1.0, "high": 1.0, "p": 1.0}]
)  # the second in results of before 2026-11-26
def test_one_value_shows_nothing(bounds: dict[str, float], table: ResultTable, tmp_path: Path) -> None:
    analysis = Steering(concepts=str(tmp_path / "c.jsonl"))
    clear = {"low": 0.1, "high": 0.3, "p": 0.01}
    found = [
        Row(metric="concept_hit_effect", value=1.0, condition=condition, k=5, **kept)
        for condition, kept in (("none", bounds), ("random", clear))
    ]
    table.write(SnapshotId("run", 16, 160), analysis, found, seconds=1.0)
    [said] = [said for said in verdicts(read_run(tmp_path / "run")) if said.startswith("Steering")]
    assert said.endswith(
        "none +1.000; random +1.000 [+0.100, +0.300]. A single value (one concept, one seed) shows nothing."
    )
    [differences] = effects(table.frame(["steering"]).query("step == 16"), "steering")[1:]
    assert [row[3:] for row in differences.rows] == [("+1.000", ""), ("+1.000 [+0.100, +0.300]", "0.01")]


def test_no_text_that_names_the_concept_is_no_effect(table: ResultTable, tmp_path: Path) -> None:
    table.path(8, "steering").unlink()
    assert any(
        said.endswith("No effect beyond every control is shown.") for said in verdicts(read_run(tmp_path / "run"))
    )


def test_the_report_marks_the_words_and_escapes_the_rest(table: ResultTable, tmp_path: Path) -> None:
    page = write_report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert "Steering: concept neurons held" in page
    assert "say <mark>water</mark> &amp; more" in page
    assert "&lt;b&gt;plain&lt;/b&gt;" in page
    assert "<b>plain</b>" not in page
    assert "against controls" in page


def test_marks_stand_where_the_spans_say() -> None:
    assert marked_pieces("a <b> c", [2, 5]) == (("a ", False), ("<b>", True), (" c", False))
    assert marked_pieces("plain", []) == (("plain", False),)


def test_live_figures_come_with_the_newest_texts(table: ResultTable, tmp_path: Path) -> None:
    figures = live_steering_figures(table, ["steering"], 8)
    assert set(figures) == {
        f"panels/steering/{name}"
        for name in ("output_experts_10", "output_experts_100", "concept_by_k", "concept_over_steps", "texts")
    }
    texts = table.attachment(8, "steering", "texts").to_pandas()
    shown = choose_texts(texts, 15)
    assert shown.groupby(["condition", "k"]).size().unique().tolist() == [3, 2]
    assert shown["condition"].iloc[0] == "experts"
    assert "&lt;b&gt;" in str(texts_figure(texts, 8).data[0].cells["values"])
    assert live_steering_figures(table, [], 8) == {}
