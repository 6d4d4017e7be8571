"""Runs of several seeds: one statement over runs and concepts, only where the seed alone differs."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis.base import Row
from analysis.measures.heldout import HeldOutLoss
from analysis.measures.overlap import ConceptOverlap
from analysis.report.changes import DECISIVE
from analysis.report.comparison.seeds import (
    headlines_over_runs,
    only_seeds_differ,
    rise_over_runs,
    sharing_over_runs,
)
from analysis.report.report import write_report
from analysis.report.run import RunRecord, read_run
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId
from analysis.statistics import two_way_interval

CONCEPTS = [f"c{number}" for number in range(12)]
OVERLAP = ConceptOverlap(concepts="none.parquet")
LOSS = HeldOutLoss(texts="none.parquet")


def write(
    folder: Path,
    seed: int,
    rise: float,
    steps: tuple[int, ...] = (0, 8, 16),
    overlap: ConceptOverlap = OVERLAP,
    **more: int,
) -> RunRecord:
    """A run whose concepts rise by about `rise` from step 0 to its last one; `more` are options of its model."""
    table, noise = ResultTable(folder / "results"), np.random.default_rng(seed)
    for step in steps:
        here = SnapshotId(folder.name, step, step * 10)
        level = 0.02 + rise * (step == steps[-1])
        values = level + noise.normal(0.0, 0.005, len(CONCEPTS))
        rows = [Row(metric=DECISIVE, value=values.mean(), low=level - 0.01, high=level + 0.01)]
        for condition in (None, "disjoint_scripts"):
            rows += [
                Row(metric=DECISIVE, value=value, concept=concept, condition=condition)
                for concept, value in zip(CONCEPTS, values, strict=True)
            ]
        rows.append(Row(metric="ap_best", value=0.5))
        table.write(here, overlap, rows, seconds=1.0)
        table.write(here, LOSS, [Row(metric="bits_per_byte", value=4.0 - 0.1 * step + 0.01 * seed)], seconds=1.0)
    config = {
        "seed_everything": seed,
        "trainer": {"max_steps": steps[-1], "default_root_dir": str(folder)},
        "model": {"d_model": 32, **more},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return read_run(folder)


@pytest.mark.parametrize(("rise", "word"), [(0.05, "above"), (0.0, "not shown (visible from"), (-0.05, "below")])
def test_a_planted_rise_over_runs_is_found_and_none_is_not(tmp_path: Path, rise: float, word: str) -> None:
    records = [write(tmp_path / f"seed{seed}", seed, rise) for seed in (1, 2, 3)]
    [sentence], [table] = sharing_over_runs(records)
    assert sentence.startswith("Sharing over 3 runs (overlap): rank transfer, all pairs, is")
    assert word in sentence
    assert [row[0] for row in table.rows] == ["all pairs", "no common script"]
    assert all(word in row[-1] for row in table.rows)


def test_the_interval_is_that_over_runs_and_concepts(tmp_path: Path) -> None:
    records = [write(tmp_path / f"seed{seed}", seed, 0.01 * seed) for seed in (1, 2, 3)]
    found = rise_over_runs(records, "overlap", DECISIVE)
    frames = [
        record.frame[record.frame["condition"].isna() & record.frame["concept"].notna()].pivot_table(
            index="concept", columns="step", values="value"
        )
        for record in records
    ]
    rises = np.array([frame.loc[sorted(CONCEPTS), 16] - frame.loc[sorted(CONCEPTS), 0] for frame in frames])
    assert found is not None
    assert astuple(found.contrast) == pytest.approx(astuple(two_way_interval(rises)))
    assert found.by_run == pytest.approx(rises.mean(axis=1))
    assert found.signs == "3 of 3"


def test_the_step_is_the_last_that_all_runs_have(tmp_path: Path) -> None:
    """A run that is still training does not make the others wait, nor is its present step held against their last."""
    records = [write(tmp_path / "one", 1, 0.05), write(tmp_path / "two", 2, 0.05, steps=(0, 8))]
    found = rise_over_runs(records, "overlap", DECISIVE)
    assert found is not None
    assert found.step == 8
    table = headlines_over_runs(records)
    assert table is not None
    [loss] = [row for row in table.rows if "Bits per byte" in row[0]]
    assert loss[1:4] == ("8", "4.0150", "3.2150")
    assert loss[4].startswith("-0.8000")
    assert loss[5] == "0 of 2"


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path: Path) -> None:
    one = write(tmp_path / "one", 1, 0.05)
    assert only_seeds_differ([one, write(tmp_path / "two", 2, 0.05)])
    assert not only_seeds_differ([one, write(tmp_path / "wide", 2, 0.05, d_model=64)])
    assert not only_seeds_differ([one, write(tmp_path / "again", 1, 0.05)]), "one seed twice is one run"
    averaged = write(tmp_path / "averaged", 2, 0.05)
    averaged.config["trainer"]["callbacks"] = [{"class_path": "StochasticWeightAveraging"}]
    assert not only_seeds_differ([one, averaged]), "a callback may change the weights"
    assert not only_seeds_differ([one])
    page = write_report([tmp_path / "one", tmp_path / "wide"]).read_text(encoding="utf-8")
    assert "Sharing over" not in page


def test_analyses_with_other_settings_are_not_averaged(tmp_path: Path) -> None:
    other = ConceptOverlap(concepts="none.parquet", k=7)
    records = [write(tmp_path / "one", 1, 0.05), write(tmp_path / "two", 2, 0.05, overlap=other)]
    assert sharing_over_runs(records) == ([], [])
    table = headlines_over_runs(records)
    assert table is not None
    assert len(table.rows) == 1, "the loss, which both measured alike"


def test_the_page_begins_with_what_holds_for_all_runs(tmp_path: Path) -> None:
    folders = [tmp_path / f"seed{seed}" for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        write(folder, seed, 0.05)
    page = write_report(folders).read_text(encoding="utf-8")
    places = [page.index(said) for said in ("Sharing over 2 runs", "One line a run", ">Further measures<")]
    assert places == sorted(places)


def test_without_step_0_the_page_says_why_nothing_is_said_of_all_runs(tmp_path: Path) -> None:
    folders = [tmp_path / f"seed{seed}" for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        write(folder, seed, 0.05, steps=(16,))
    page = write_report(folders).read_text(encoding="utf-8")
    assert "nothing is said of all of them, since no measure has both step 0" in page
    assert "what holds for all of them" not in page
    assert "16 - 16" not in page
