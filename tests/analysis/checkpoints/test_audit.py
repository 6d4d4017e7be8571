"""Duplicates, gaps and drift of a suite, as they were found in published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.checkpoints.audit import (
    CheckpointRecord,
    find_drift,
    find_duplicates,
    find_gaps,
    read_record,
    write_record,
    write_summary,
)


def record(step: int, weights: str, tokenizer: str = "t", **config: object) -> CheckpointRecord:
    return CheckpointRecord(
        step=step,
        tokens=None,
        name=f"global_step{step}",
        marks={"commit": str(step)},
        weights_sha256=weights,
        tokenizer_sha256=tokenizer,
        config={"n_layer": 2} | config,
    )


def test_steps_with_the_same_weights_are_grouped() -> None:
    records = [record(600, "c"), record(500, "a"), record(10, "a"), record(100, "b"), record(900, "a")]
    assert find_duplicates(records) == [(10, 500, 900)]


@pytest.mark.parametrize(
    ("steps", "gaps"),
    [
        ([1000, 10_000, 100_000, 200_000, 300_000, 400_000, 500_000, 600_000], []),
        ([1000, 10_000, 50_000, 100_000, 200_000, 250_000, 300_000], [150_000]),
        ([0, 1, 2, 4, 8, 16, 5000, 8192, 10_000, 15_000, 16_384, 20_000, 30_000, 35_000], [25_000]),
        ([0, 1, 2, 4, 8], []),
        ([0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 20_480], []),
        ([10, 20, 40, 50, 80], [30, 60, 70]),
        ([7], []),
        ([], []),
    ],
)
def test_a_gap_is_a_missing_beat_of_the_suites_own_rhythm(steps: list[int], gaps: list[int]) -> None:
    assert find_gaps(steps) == gaps


def test_drift_names_what_differs_from_the_majority() -> None:
    records = [
        record(1, "a"),
        record(2, "b"),
        record(3, "c", n_layer=3),
        record(4, "d", tokenizer="other"),
        record(5, "e", alibi=True),
    ]
    assert find_drift(records) == {
        3: ["n_layer 3 (usually 2)"],
        4: ["another tokenizer"],
        5: ['alibi true (usually "(absent)")'],
    }
    assert find_drift([]) == {}


def test_the_summary_holds_every_record_and_finding(tmp_path: Path) -> None:
    for one in (record(10, "a"), record(20, "b"), record(30, "b"), record(50, "c", n_layer=9)):
        write_record(tmp_path, one)
    lines = write_summary(tmp_path, "suite", [10, 20, 30, 50, 60], {60: "suite step 60: gone"})
    assert lines == [
        "suite: step 30 (global_step30) has the weights of step 20 (global_step20)",
        "suite: no checkpoint for step 40",
        "suite: step 50 (global_step50) differs: n_layer 9 (usually 2)",
    ]
    content = json.loads((tmp_path / "identity.json").read_text())
    assert [entry["step"] for entry in content["checkpoints"]] == [10, 20, 30, 50]
    assert content["duplicates"] == [[20, 30]]
    assert content["failed"] == {"60": "suite step 60: gone"}


def test_an_unreadable_record_counts_as_none(tmp_path: Path) -> None:
    write_record(tmp_path, record(10, "a"))
    assert read_record(tmp_path, 10) == record(10, "a")
    path = tmp_path / "identity" / "step_00000010.json"
    path.write_text(path.read_text()[:20])
    assert read_record(tmp_path, 10) is None
    assert read_record(tmp_path, 11) is None
