"""Chapters of the measures on concepts across languages and on grammar: what they say follows planted rows."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from analysis.base import Analysis, Attachment, Row
from analysis.measures.causal_transfer import CausalTransfer
from analysis.measures.concept_directions import ConceptDirections
from analysis.measures.minimal_pairs import MinimalPairs
from analysis.measures.overlap import ConceptOverlap
from analysis.measures.trajectories import Trajectories
from analysis.report.report import verdicts, write_report
from analysis.report.run import read_run
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId

LANGUAGES = ("de", "en")
PAIRS = list(itertools.product(LANGUAGES, LANGUAGES))


def bounds(value: float, half: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def causal(level: float) -> list[Row]:
    rows = [Row(metric="causal_transfer", chance=0.0, **bounds(level)), Row(metric="causal_own", value=0.3, chance=0.0)]
    return rows + [Row(metric="causal_transfer", value=level, language=a, other_language=b) for a, b in PAIRS]


def causal_of_one(level: float) -> list[Row]:
    """Of one concept there is no interval."""
    return [Row(metric="causal_transfer", value=level, chance=0.0), *causal(level)[2:]]


def directions(level: float) -> list[Row]:
    rows = [Row(metric="direction_transfer", chance=0.5, **bounds(level)), Row(metric="direction_own", value=0.9)]
    for layer in (-1, 0, 1):
        rows.append(Row(metric="direction_transfer", value=level, layer=layer, chance=0.5))
        rows.append(Row(metric="direction_own", value=0.9, layer=layer, chance=0.5))
    return [*rows, Row(metric="direction_transfer", value=level, language="de", other_language="en")]


def grammar(level: float) -> list[Row]:
    rows = [Row(metric="pair_accuracy", chance=0.5, **bounds(level))]
    for language, shift in (("de", -0.1), ("en", 0.1)):
        rows.append(Row(metric="pair_accuracy", value=level + shift, language=language, chance=0.5))
        rows.append(Row(metric="pair_accuracy", value=level + shift, language=language, concept="agreement"))
    return rows


def frozen(level: float) -> list[Row]:
    return [
        Row(metric="frozen_ap", value=level + 0.2 * (a == b), language=a, other_language=b, chance=0.2)
        for a, b in PAIRS
    ]


CASES = {
    "causal": (CausalTransfer(concepts="c"), causal, (0.0, 0.2), "0.2000 [0.1900, 0.2100] nats more", "the ablated"),
    "causal, nothing there": (CausalTransfer(concepts="c"), causal, (0.0, 0.0), "no effect is shown", "the ablated"),
    "causal, one concept": (CausalTransfer(concepts="c"), causal_of_one, (0.0, 0.2), "cost 0.2000 nats", "the ablated"),
    "directions": (ConceptDirections(concepts="c"), directions, (0.5, 0.7), "AUROC 0.700", "Transfer by layer"),
    "grammar": (MinimalPairs(pairs="p"), grammar, (0.5, 0.8), "de 70.0% to en 90.0%): above a guess", "phenomenon"),
    "grammar, nothing there": (MinimalPairs(pairs="p"), grammar, (0.5, 0.5), "no better than a guess", "phenomenon"),
    "frozen": (Trajectories(concepts="c", results="r", frozen_step=8), frozen, (0.2, 0.4), "0.400 (mean", "Frozen AP"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_sentence_and_the_figures_follow_the_rows(case: str, tmp_path: Path) -> None:
    analysis, rows, levels, said, title = CASES[case]
    table = ResultTable(tmp_path / "run" / "results")
    for step, level in zip((0, 8), levels, strict=True):
        assert isinstance(analysis, Analysis)
        table.write(SnapshotId("run", step, step), analysis, rows(level), seconds=1.0)
    record = read_run(tmp_path / "run")
    assert any(said in line for line in verdicts(record)), verdicts(record)
    text = write_report([tmp_path / "run"]).read_text(encoding="utf-8")
    figures = [json.loads(part) for part in re.findall(r'id="figure-\d+">(.*?)</script>', text, flags=re.DOTALL)]
    assert any(title in figure["layout"]["title"]["text"] for figure in figures)


def test_a_unit_of_a_concept_stands_with_its_ap_and_the_sentences_that_move_it(tmp_path: Path) -> None:
    units = [
        {"concept": "fire", "language": language, "unit": unit, "layer": 1, "kind": "mlp.in", "index": unit}
        | {"ap_de": 0.9, "ap_en": ap}
        for unit, ap, languages in ((7, 0.8, LANGUAGES), (9, 0.95, ("en",)))
        for language in languages
    ]
    hostile = "</script><script>alert(1)</script><!--<script>"
    sentences = [
        {"concept": "fire", "unit": 7, "language": "en", "response": 2.5, "positive": True, "text": "a fire burns"},
        {"concept": "fire", "unit": 7, "language": "de", "response": 1.5, "positive": False, "text": hostile},
    ]
    attachments = [
        Attachment("experts", pa.Table.from_pylist(units)),
        Attachment("sentences", pa.Table.from_pylist(sentences)),
    ]
    rows = [Row(metric="shared", value=0.1, chance=0.01)]
    table = ResultTable(tmp_path / "run" / "results")
    table.write(SnapshotId("run", 8, 8), ConceptOverlap(concepts="c"), [*rows, *attachments], seconds=1.0)
    text = write_report([tmp_path / "run"]).read_text(encoding="utf-8")
    (data,) = re.findall(r'<div class="units"><script type="application/json">(.*?)</script>', text, flags=re.DOTALL)
    assert "<" not in data
    first, second = json.loads(data)["fire"]
    assert (first["name"], first["num_languages"], first["ap"]) == ("L01 mlp.in 7", 2, {"de": 0.9, "en": 0.8})
    assert [tuple(said) for said in first["sentences"]] == [
        ("en", 2.5, True, "a fire burns"),
        ("de", 1.5, False, hostile),
    ]
    assert (second["num_languages"], second["sentences"]) == (1, [])
