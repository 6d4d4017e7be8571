"""Intervals cover as they promise; the correction is scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, false_discovery_control

from analysis.statistics import benjamini_hochberg, bootstrap_interval


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=40)
    low, high = bootstrap_interval(values, num_resamples=20_000, seed=1)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2))
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_interval_covers_the_truth_about_as_often_as_promised() -> None:
    samples = np.random.default_rng(0).normal(size=(50, 400))
    low, high = bootstrap_interval(samples, num_resamples=500)
    covered = float(((low <= 0.0) & (high >= 0.0)).mean())
    assert 0.89 < covered < 0.98


def test_interval_is_the_same_for_the_same_seed_and_columns_are_resampled_together() -> None:
    values = np.random.default_rng(0).normal(size=(10, 3))
    one, two = bootstrap_interval(values, seed=3), bootstrap_interval(values, seed=3)
    assert np.array_equal(one, two)
    np.testing.assert_allclose(bootstrap_interval(values[:, 1], seed=3), np.array(one)[:, 1])
    low, high = bootstrap_interval(np.array([0.7]))
    assert (low, high) == (0.7, 0.7)


@pytest.mark.parametrize(
    ("values", "options"),
    [([], {}), ([np.nan], {}), ([1.0], {"num_resamples": 0}), ([1.0], {"level": 1.0}), (np.zeros((1, 1, 1)), {})],
)
def test_bad_input_is_refused(values: list[float], options: dict) -> None:
    with pytest.raises(ValueError, match="bootstrap|num_resamples"):
        bootstrap_interval(np.asarray(values), **options)


def test_correction_equals_scipy() -> None:
    p = np.random.default_rng(0).random((6, 7)) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p).reshape(-1), false_discovery_control(p.reshape(-1)))
    assert benjamini_hochberg(np.array([])).size == 0
    assert benjamini_hochberg(np.array([0.04, 0.04])).tolist() == [0.04, 0.04]
    with pytest.raises(ValueError, match="between 0 and 1"):
        benjamini_hochberg(np.array([1.2]))
