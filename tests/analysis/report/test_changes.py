"""Verdicts: they follow the held-out statistic, stand against random networks, and say what they could have seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from analysis.base import Attachment, Row
from analysis.measures.heldout import HeldOutLoss
from analysis.measures.overlap import ConceptOverlap
from analysis.report.changes import DECISIVE, changes_by_stratum, find_change
from analysis.report.comparison.steps import change_of
from analysis.report.report import verdicts
from analysis.report.run import RunRecord, read_run
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId

CONCEPTS = [f"c{i}" for i in range(20)]
NOISE = np.random.default_rng(1).normal(0, 0.01, (3, len(CONCEPTS)))


OVERLAP = ConceptOverlap(concepts="none.parquet")
LOSS = HeldOutLoss(texts="none.parquet")


def write(folder: Path, levels: dict[int, float], metric: str = DECISIVE, condition: str | None = None) -> RunRecord:
    """A run whose concepts share `levels[step]` plus a noise of their own at every step."""
    table = ResultTable(folder / "results")
    for noise, (step, level) in zip(NOISE, levels.items(), strict=False):
        rows = [
            Row(metric=metric, value=level + extra, concept=concept, condition=condition)
            for concept, extra in zip(CONCEPTS, noise, strict=True)
        ]
        table.write(SnapshotId("planted", step, step * 10), OVERLAP, rows, seconds=1.0)
    return read_run(folder)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (0.09, "above the untrained network"),
        (0.01, "below the untrained network"),
        (0.05, "no difference from the untrained network is shown"),
    ],
)
def test_the_verdict_follows_the_paired_difference(tmp_path: Path, last: float, words: str) -> None:
    record = write(tmp_path, {0: 0.05, 8: last})
    change = find_change(record, "overlap", DECISIVE)
    assert change is not None
    assert change.verdict.startswith(words)
    assert change.contrast.difference == pytest.approx(last - 0.05 + (NOISE[1] - NOISE[0]).mean())
    [sentence, *_] = verdicts(record)
    assert sentence.startswith("Sharing (overlap)")
    assert words in sentence


def test_no_difference_stands_beside_the_smallest_that_could_have_been_seen(tmp_path: Path) -> None:
    change = find_change(write(tmp_path, {0: 0.05, 8: 0.05}), "overlap", DECISIVE)
    assert change is not None
    assert f"one of {change.contrast.visible:.4f} or more would have been seen (80% power)" in change.verdict


def test_a_band_of_random_networks_is_the_reference_where_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random networks differ by more than the rise over step 0, which alone would have been called one."""
    record = write(tmp_path, {0: 0.05, 8: 0.07})
    alone = find_change(record, "overlap", DECISIVE)
    assert alone is not None
    assert alone.contrast.low > 0
    band = pd.concat(
        record.frame[record.frame["step"] == 0].assign(network=network, value=lambda f, s=shift: f["value"] + s)
        for network, shift in enumerate((-0.02, 0.0, 0.02, 0.01, 0.03))
    )
    monkeypatch.setattr(RunRecord, "null_band", lambda self, analysis: band)
    change = find_change(record, "overlap", DECISIVE)
    assert change is not None
    assert change.num_networks == 5
    assert change.contrast.low < 0 < change.contrast.high
    assert change.verdict.startswith("no difference from 5 random networks is shown")


def test_concepts_that_all_depend_on_each_other_give_no_verdict(tmp_path: Path) -> None:
    """Their interval would have no width, and any difference would pass for one that is certain."""
    write(tmp_path, {0: 0.05, 8: 0.09})
    table = ResultTable(tmp_path / "results")
    experts = pa.Table.from_pylist([{"concept": concept, "cluster": 0} for concept in CONCEPTS])
    table.write(
        SnapshotId("planted", 8, 80), OVERLAP, [*table.rows(8, "overlap"), Attachment("experts", experts)], seconds=1.0
    )
    record = read_run(tmp_path)
    assert find_change(record, "overlap", DECISIVE) is None
    assert change_of(record, "overlap", DECISIVE, 0, 8) is None
    assert "all concepts depend on each other" in verdicts(record)[0]


def test_strata_are_changes_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, {0: 0.05, 8: 0.09})
    table = ResultTable(tmp_path / "results")
    for step, level in ((0, 0.05), (8, 0.05)):
        rows = table.rows(step, "overlap")
        rows += [
            Row(metric=DECISIVE, value=level + extra, concept=concept, condition="disjoint_scripts")
            for concept, extra in zip(CONCEPTS, NOISE[step // 8], strict=True)
        ]
        table.write(SnapshotId("planted", step, step * 10), OVERLAP, rows, seconds=1.0)
    everything, disjoint = changes_by_stratum(read_run(tmp_path), "overlap", DECISIVE)
    assert (everything.condition, disjoint.condition) == (None, "disjoint_scripts")
    assert everything.verdict.startswith("above")
    assert disjoint.verdict.startswith("no difference")
    assert "no common script" in verdicts(read_run(tmp_path))[1]


def test_old_results_have_no_verdict_but_the_number_of_the_study(tmp_path: Path) -> None:
    record = write(tmp_path, {0: 0.05, 8: 0.09}, metric="shared")
    assert find_change(record, "overlap", DECISIVE) is None
    assert "older than the held-out statistic that decides" in verdicts(record)[0]


def test_without_an_untrained_network_the_report_says_what_cannot_be_told(tmp_path: Path) -> None:
    record = write(tmp_path, {4: 0.05, 8: 0.09})
    assert "neither random networks nor step 0 were measured" in verdicts(record)[0]


def test_copies_and_broken_checkpoints_feed_no_verdict(tmp_path: Path) -> None:
    """As BLOOM-560m: one revision has the weights of another step, one the loss of noise."""
    write(tmp_path, {0: 0.05, 8: 0.05})
    table = ResultTable(tmp_path / "results")
    for step, level, bits in ((0, 0.05, 8.0), (8, 0.05, 3.0), (16, 0.3, 3.0), (24, 0.3, 9.5)):
        here = SnapshotId("planted", step, step)
        rows = [Row(metric=DECISIVE, value=level + 0.001 * i, concept=name) for i, name in enumerate(CONCEPTS)]
        table.write(here, OVERLAP, rows, seconds=1.0)
        table.write(here, LOSS, [Row(metric="bits_per_byte", value=bits)], seconds=1.0)
    (tmp_path / "results" / "identity.json").write_text(json.dumps({"duplicates": [[8, 16]]}))
    record = read_run(tmp_path)
    assert record.usable_steps == [0, 8]
    change = find_change(record, "overlap", DECISIVE)
    assert change is not None
    assert (change.step, change.contrast.difference) == (8, pytest.approx(0.0))
    assert any("step 16, 24, a copy of another checkpoint or broken" in sentence for sentence in verdicts(record))


def losses(table: ResultTable, name: str, found: dict[int, tuple[float, float]]) -> None:
    """Bits per byte and perplexity over the vocabulary by step."""
    for step, (bits, perplexity) in found.items():
        rows = [Row(metric="bits_per_byte", value=bits)]
        rows += [Row(metric="perplexity", value=perplexity * 100, language=code, chance=100.0) for code in ("de", "en")]
        table.write(SnapshotId("planted", step, step), replace(LOSS, name=name), rows, seconds=1.0)


def test_every_loss_is_judged_by_its_own_curve(tmp_path: Path) -> None:
    """A second list of harder texts at some of the steps is no sign of broken files."""
    table = ResultTable(tmp_path)
    losses(table, "easy", {0: (8.0, 1.1), 8: (2.0, 0.1), 16: (1.9, 0.1), 24: (1.8, 0.1)})
    losses(table, "hard", {16: (6.0, 0.5), 24: (5.9, 0.5)})
    assert read_run(tmp_path).usable_steps == [0, 8, 16, 24]
    losses(table, "hard", {24: (9.5, 0.9)})
    assert read_run(tmp_path).usable_steps == [0, 8, 16]


@pytest.mark.parametrize(
    ("perplexities", "usable"),
    [
        ({0: 1.1, 1: 1.05, 8: 0.5, 16: 1.2, 24: 0.4}, [0, 1, 8, 24]),  # the first steps are no better than a guess
        ({1: 1.1}, []),  # freshly made weights that pass for a checkpoint
        ({0: 1.1, 4: 1.2}, [0]),
    ],
)
def test_a_checkpoint_worse_than_a_uniform_guess_feeds_no_verdict(
    perplexities: dict[int, float], usable: list[int], tmp_path: Path
) -> None:
    losses(ResultTable(tmp_path), "held_out", {step: (8.0, ratio) for step, ratio in perplexities.items()})
    assert read_run(tmp_path).usable_steps == usable
