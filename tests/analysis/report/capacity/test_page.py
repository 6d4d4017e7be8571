"""The comparison of sizes: whether the verdict follows the data, and which runs enter it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis.base import Row
from analysis.measures import build_analyses
from analysis.report.capacity.page import find_trends, verdict, write_capacity_report
from analysis.report.capacity.runs import common_loss, read_family
from analysis.report.capacity.trend import Trend
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId

WIDTHS = (64, 128, 256, 512)
STEPS = 8
ANALYSES = [
    {"class_path": "ConceptOverlap", "init_args": {"concepts": "none.parquet"}},
    {"class_path": "HeldOutLoss", "init_args": {"texts": "none.parquet"}},
]


def write_run(folder: Path, width: int, seed: int, *, rise: float, loss: float, steps: int = STEPS) -> None:
    """A run folder as training leaves it, sharing `rise` more than its untrained network; measured up to `steps`."""
    folder.mkdir(parents=True)
    config = {"model": {"d_model": width}, "seed_everything": seed, "trainer": {"max_steps": STEPS}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    table = ResultTable(folder / "results")
    overlap, held_out = build_analyses(ANALYSES)
    for step in [step for step in (0, STEPS // 2, STEPS) if step <= steps]:
        here = SnapshotId(folder.name, step, step * 100)
        level = 0.05 + rise * step / STEPS
        rows = [Row(metric="shared", value=level, chance=0.01, low=level - 0.01, high=level + 0.01)]
        rows += [
            Row(metric="shared", value=level + 0.002 * ((5 * i) % 3 - 1), concept=f"c{i}", chance=0.01)
            for i in range(6)
        ]
        rows.append(Row(metric="kappa", value=(level - 0.01) / 0.99, chance=0.0))
        table.write(here, overlap, rows, seconds=0.1)
        bits = 8.0 + (loss - 8.0) * step / STEPS
        table.write(here, held_out, [Row(metric="bits_per_byte", value=bits)], seconds=0.1)


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., list[Path]]:
    """`planted(rise, seeds)` writes finished runs of four widths; `rise(width, seed)` is what sharing gains."""

    def write(rise: Callable[[int, int], float], seeds: Sequence[int] = (1, 2, 3)) -> list[Path]:
        folders = []
        for seed in seeds:
            for width in WIDTHS:
                folders.append(tmp_path / f"small-d{width}-s{seed}")
                write_run(folders[-1], width, seed, rise=rise(width, seed), loss=5.0 - 0.2 * np.log2(width / 64))
        return folders

    return write


def sentence(folders: Sequence[Path]) -> str:
    runs = read_family(folders)
    return verdict(find_trends(runs)["rise"][1], runs)


def test_a_planted_fall_with_capacity_is_found_and_shown(planted: Callable[..., list[Path]], tmp_path: Path) -> None:
    folders = planted(lambda width, seed: 0.05 - 0.00005 * width + 0.001 * seed)
    assert sentence(folders).startswith("Sharing rises more in smaller models (4 sizes, 3 seeds, 12 runs;")
    out = tmp_path / "report.html"
    _, sizes, trends = write_capacity_report(folders, out)
    page = out.read_text(encoding="utf-8")
    assert "as the compression hypothesis predicts" in page
    assert [row[:3] for row in sizes.rows] == [(f"d{width}", str(width), "3") for width in WIDTHS]
    assert "effective rank / width" not in sizes.header  # nothing of the kind was measured
    assert float(trends.rows[0][2]) < -0.95
    assert trends.rows[0][3] == f"{2 / 24**3:.4f}"  # only this order and its reverse are as far out


def test_a_planted_rise_with_capacity_counts_against_the_hypothesis(planted: Callable[..., list[Path]]) -> None:
    assert "against the compression hypothesis" in sentence(planted(lambda width, seed: 0.0001 * width))


def test_runs_that_were_measured_otherwise_are_named_or_refused(
    planted: Callable[..., list[Path]], tmp_path: Path
) -> None:
    folders = planted(lambda width, seed: 0.0001 * width, seeds=(1,))
    write_capacity_report(folders, tmp_path / "x.html")
    assert "different settings" not in (tmp_path / "x.html").read_text(encoding="utf-8")
    table, here = ResultTable(folders[1] / "results"), SnapshotId(folders[1].name, STEPS, STEPS * 100)
    overlap, _ = build_analyses(ANALYSES)
    table.write(here, replace(overlap, k=7), table.rows(STEPS, "overlap"), 0.1)
    write_capacity_report(folders, tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "was measured with different settings: k." in text
    assert f"{folders[1].name}: Mixed settings: overlap was measured in 2 ways" in text
    decisive = [Row(metric="rank_transfer", value=0.1 * i, concept=f"c{i}") for i in range(6)]
    for step in (0, STEPS):
        table = ResultTable(folders[0] / "results")
        table.write(SnapshotId(folders[0].name, step, step * 100), overlap, decisive, 0.1)
    with pytest.raises(
        ValueError, match="-d64-s1 has rank_transfer, .*-d128-s1 only shared: their rises do not compare"
    ):
        write_capacity_report(folders, tmp_path / "x.html")


def test_the_verdict_has_the_direction_that_p_is_of(planted: Callable[..., list[Path]]) -> None:
    runs = read_family(planted(lambda width, seed: 0.02, seeds=(1,)))
    trend = Trend(correlation=0.2, p=0.01, smallest_p=0.001, num_runs=4, direction=-1)
    assert verdict(trend, runs).startswith("Sharing rises more in smaller models")


def test_noise_is_called_no_trend(planted: Callable[..., list[Path]]) -> None:
    noise = dict(zip(range(12), np.random.default_rng(3).permutation(12), strict=True))
    numbers = iter(noise.values())
    assert sentence(planted(lambda width, seed: 0.01 + 0.001 * next(numbers))).startswith("No trend of sharing")


def test_one_seed_is_called_too_little(planted: Callable[..., list[Path]]) -> None:
    said = sentence(planted(lambda width, seed: 0.05 - 0.00005 * width, seeds=(1,)))
    assert said.startswith("Too few runs to tell (4 sizes, 1 seed, 4 runs)")


def test_rise_is_read_at_the_loss_that_all_runs_reached(planted: Callable[..., list[Path]]) -> None:
    runs = read_family(planted(lambda width, seed: 0.04))
    loss = common_loss(runs)
    assert loss == pytest.approx(5.0)
    # Loss falls and sharing rises on a straight line, so d512 (from 8 to 4.4) is at 3 / 3.6 of its rise there.
    assert runs[-1].rise_at_loss(5.0) == pytest.approx(0.04 / 0.99 * 3.0 / 3.6)
    assert runs[0].rise_at_loss(5.0) == pytest.approx(0.04 / 0.99)
    assert runs[0].rise_at_loss(1.0) is None


def test_the_rise_is_corrected_for_chance(planted: Callable[..., list[Path]]) -> None:
    run = read_family(planted(lambda width, seed: 0.02, seeds=(1,)))[0]
    assert run.rise == pytest.approx(0.02 / 0.99)
    assert run.overall("ConceptOverlap", "kappa") == pytest.approx(0.06 / 0.99)


def test_loss_among_seeds_is_asked_apart_from_loss_among_widths(planted: Callable[..., list[Path]]) -> None:
    # Rise and loss both fall with width, but among the seeds of a width the losses are all the same.
    trends = find_trends(read_family(planted(lambda width, seed: 0.05 - 0.00005 * width + 0.001 * seed)))
    assert trends["rise_by_loss"][1].correlation == 0.0
    assert trends["rise_by_loss"][1].p == 1.0
    assert trends["loss"][1].correlation == pytest.approx(-1.0)


def test_a_run_that_is_counted_twice_is_refused(planted: Callable[..., list[Path]], tmp_path: Path) -> None:
    folders = planted(lambda width, seed: 0.02, seeds=(1,))
    write_run(tmp_path / "again", 64, 1, rise=0.02, loss=4.0)
    with pytest.raises(ValueError, match="small-d64-s1 and .*again both have d_model 64 and seed 1"):
        read_family([*folders, tmp_path / "again"])


def test_runs_that_have_not_ended_are_named_and_left_out(
    planted: Callable[..., list[Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = planted(lambda width, seed: 0.02, seeds=(1,))
    write_run(tmp_path / "halfway", 1024, 1, rise=0.02, loss=4.0, steps=STEPS // 2)
    with caplog.at_level(logging.WARNING):
        runs = read_family([*folders, tmp_path / "halfway"])
    assert [run.width for run in runs] == list(WIDTHS)
    assert "halfway: not finished, left out" in caplog.text
    with pytest.raises(FileNotFoundError, match="never: no such folder"):
        read_family([*folders, tmp_path / "never"])
    with pytest.raises(ValueError, match="no finished run"):
        write_capacity_report([tmp_path / "halfway"], tmp_path / "x.html")
    with pytest.raises(ValueError, match="1 of 1 finished runs have concept overlap .* name more runs"):
        write_capacity_report(folders[:1], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
