"""Onsets are where they were planted, and their intervals cover (bench_coverage.py simulates more cases)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from analysis.onsets import band_edges, find_onset, mean_onset, onset_difference

STEPS = (0, 64, 128, 256, 512, 1024, 2048)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "bench_coverage.py"
    spec = importlib.util.spec_from_file_location("bench_coverage", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_crossing_is_between_the_two_snapshots_where_the_curve_is_straight() -> None:
    found = find_onset(STEPS, [0, 0, 1, 2, 3, 4, 5], edge=2.5)
    assert (found.inside, found.outside) == (256, 512)
    assert found.octave == pytest.approx(8.5)
    assert not found.censored
    assert find_onset(STEPS, [-value for value in (9, 8, 6, 3, 2, 1, 0)], edge=-2.5).octave == pytest.approx(
        8.5, abs=0.1
    )


def test_a_curve_that_comes_back_has_not_left() -> None:
    assert find_onset(STEPS, [0, 0, 9, 0, 0, 4, 5], edge=2.0).inside == 512
    never = find_onset(STEPS, [0, 0, 9, 9, 9, 9, 1], edge=2.0)
    assert (never.outside, never.octave, never.censored) == (None, None, True)


def test_what_is_only_bounded_has_no_mean() -> None:
    early = find_onset(STEPS, [0, 9, 9, 9, 9, 9, 9], edge=2.0)
    assert (early.inside, early.outside, early.censored) == (0, 64, True)
    assert find_onset(STEPS, [9] * 7, edge=2.0).censored
    late = [find_onset(STEPS, [0, 0, 0, 0, 0, value, 9], edge=2.0) for value in (1.0, 1.5)]
    assert mean_onset(late) is not None
    assert mean_onset([*late, early]) is None
    assert onset_difference(late, [early, late[0]]) is None
    with pytest.raises(ValueError, match="cannot be paired"):
        onset_difference(late, late[:1])


def test_one_more_untrained_network_is_outside_one_time_in_twenty() -> None:
    rng = np.random.default_rng(0)
    outside = [not low <= rng.normal() <= high for low, high in (band_edges(rng.normal(size=5)) for _ in range(4000))]
    assert 0.04 < np.mean(outside) < 0.06
    with pytest.raises(ValueError, match="at least two"):
        band_edges([0.1])


@pytest.mark.parametrize(("steps", "values"), [([], []), ([0, 64], [0.0]), ([64, 0], [0.0, 1.0])])
def test_bad_curves_are_refused(steps: list[int], values: list[float]) -> None:
    with pytest.raises(ValueError, match="ascending steps"):
        find_onset(steps, values, 0.0)


def test_intervals_cover_the_planted_onset_and_difference(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """150 draws of six cases have a standard error of 0.7 %."""
    monkeypatch.setattr(bench, "ABRUPT", (0.7,))
    covered = np.array(list(bench.onset_coverage(150).values()))
    assert ((covered.mean(0) > 92.5) & (covered.mean(0) < 97.5)).all()
