"""Intervals cover as they promise; the correction is scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, false_discovery_control, t, ttest_1samp

from analysis.statistics import (
    against_band,
    benjamini_hochberg,
    bootstrap_interval,
    holm,
    mean_contrast,
    mean_interval,
    merge_clusters,
    paired_contrast,
    smallest_visible,
    two_way_interval,
    wilson_interval,
)


def test_interval_agrees_with_scipy_and_with_student() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=40)
    low, high = bootstrap_interval(values, num_resamples=20_000, seed=1)
    percentile = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2))
    assert low == pytest.approx(percentile.confidence_interval.low, abs=0.05)
    assert high == pytest.approx(percentile.confidence_interval.high, abs=0.15)
    student = ttest_1samp(values, 0.0).confidence_interval()
    assert low <= student.low < student.high <= high


@pytest.mark.parametrize("size", [6, 12, 40])
@pytest.mark.parametrize("shape", ["normal", "exponential"])
def test_interval_covers_the_truth_with_few_and_with_skewed_values(size: int, shape: str) -> None:
    """Percentiles of 6 exponential values cover 80 %. 1,500 draws have a standard error of 0.6 %."""
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(size, 1500)) if shape == "normal" else rng.exponential(size=(size, 1500)) - 1.0
    low, high = bootstrap_interval(samples, num_resamples=500)
    covered = float(((low <= 0.0) & (high >= 0.0)).mean())
    assert 0.925 < covered < 0.975


def test_dependent_values_count_once() -> None:
    """Every value five times is no more evidence than once, if they are said to belong together."""
    values = np.random.default_rng(0).normal(size=(8, 3))
    often, clusters = np.repeat(values, 5, axis=0), np.repeat(np.arange(8), 5)
    np.testing.assert_allclose(bootstrap_interval(often, clusters=clusters), bootstrap_interval(values))
    narrow = np.subtract(*bootstrap_interval(often)) / np.subtract(*bootstrap_interval(values))
    assert (narrow < 0.6).all()
    uneven = np.array([1.0, 2.0, 9.0, 4.0])
    assert merge_clusters(uneven, np.array([0, 0, 0, 1])).mean() == pytest.approx(uneven.mean())


def test_shares_have_a_width_at_the_border() -> None:
    low, high = wilson_interval(0, 60)
    theirs = binomtest(0, 60).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high))
    theirs = binomtest(17, 60).proportion_ci(method="wilson")
    assert wilson_interval(17, 60) == pytest.approx((theirs.low, theirs.high))
    assert wilson_interval(60, 60)[1] == pytest.approx(1.0)
    for hits, total in ((1, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="hits of"):
            wilson_interval(hits, total)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_contrasts_cover_whether_networks_or_concepts_differ(spread: float) -> None:
    rng = np.random.default_rng(0)
    inside, rejected = np.zeros(2), 0
    for _ in range(600):
        networks = rng.normal(size=12) + spread * rng.normal(size=(6, 1)) + rng.normal(size=(6, 12))
        found = [against_band(networks[0], networks[1:]), two_way_interval(networks[1:])]
        inside += [contrast.low <= 0.0 <= contrast.high for contrast in found]
        rejected += found[0].p < 0.05
        assert (found[0].p < 0.05) == (not found[0].low <= 0.0 <= found[0].high)
    assert (inside / 600 > 0.925).all()
    assert rejected / 600 < 0.07


def test_the_smallest_visible_difference_is_seen_in_four_of_five_draws() -> None:
    rng, size, sd = np.random.default_rng(0), 12, 0.02
    truth = smallest_visible(float(t.ppf(0.975, size - 1)) * sd / size**0.5, size - 1)
    draws = rng.normal(truth, sd, (4000, size))
    assert (ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("shape", "of_runs"), [((5, 60), True), ((60, 12), False)])
def test_what_could_have_been_seen_knows_whether_runs_or_concepts_are_few(
    shape: tuple[int, int], of_runs: bool
) -> None:
    rng, few = np.random.default_rng(0), min(shape)
    error = 1.0 / few**0.5
    truth = float(t.ppf(0.975, few - 1) + t.ppf(0.8, few - 1)) * error

    def planted() -> np.ndarray:
        means = rng.normal(truth, 1.0, (few, 1) if of_runs else (1, few))
        return means + rng.normal(0.0, 0.01, shape)

    found = [two_way_interval(planted()) for _ in range(400)]
    assert np.mean([contrast.low > 0.0 for contrast in found]) == pytest.approx(0.8, abs=0.06)
    # the square is unbiased, the width is not
    visible = np.mean([contrast.visible**2 for contrast in found]) ** 0.5
    assert visible == pytest.approx(truth, rel=0.05)


def test_a_network_far_above_the_band_is_seen() -> None:
    rng = np.random.default_rng(0)
    band = 0.1 + 0.02 * rng.normal(size=(5, 12))
    found = against_band(0.2 + 0.02 * rng.normal(size=12), band)
    assert found.low > 0.05
    assert found.difference == pytest.approx(0.1, abs=0.02)
    assert found.p < 1e-4
    alone = against_band(np.full(3, 0.5), np.tile([[0.1], [0.2], [0.3]], 3), clusters=np.zeros(3))
    assert alone.low < 0.0 < alone.difference, "one cluster of concepts leaves the spread of the band alone"
    for values, others in (
        (np.zeros(3), np.zeros((1, 3))),
        (np.zeros(3), np.zeros((2, 4))),
        (np.zeros(1), np.zeros((2, 1))),
    ):
        with pytest.raises(ValueError, match="against a band"):
            against_band(values, others)
    with pytest.raises(ValueError, match="at least two"):
        two_way_interval(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="depend on each other"):
        two_way_interval(np.zeros((3, 4)), clusters=np.zeros(4))


def test_interval_is_the_same_for_the_same_seed_and_columns_are_resampled_together() -> None:
    values = np.random.default_rng(0).normal(size=(10, 3))
    one, two = bootstrap_interval(values, seed=3), bootstrap_interval(values, seed=3)
    assert np.array_equal(one, two)
    np.testing.assert_allclose(bootstrap_interval(values[:, 1], seed=3), np.array(one)[:, 1])


@pytest.mark.parametrize(("values", "clusters"), [([0.7], None), ([0.7, 0.2, 0.3], [4, 4, 4])])
def test_a_single_thing_has_no_interval(values: list[float], clusters: list[int] | None) -> None:
    """One of no width around a value would leave 0 out, beside a p of 1."""
    members = None if clusters is None else np.array(clusters)
    assert np.isnan(bootstrap_interval(np.array(values), clusters=members)).all()
    both = bootstrap_interval(np.array([values, values]).T, clusters=members)
    assert np.array(both).shape == (2, 2)
    assert np.isnan(both).all()
    found = paired_contrast(np.array(values), members)
    assert (found.difference, found.p) == (pytest.approx(np.mean(values)), 1.0)
    assert np.isnan([found.low, found.high]).all()


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


def test_holm_keeps_the_order_and_the_largest() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([-0.1])


def test_a_mean_over_runs_has_students_interval_and_what_the_runs_do_not_show_widens_it() -> None:
    values = np.array([0.1, 0.3, 0.2, 0.5, 0.1])
    theirs, found = ttest_1samp(values, 0.0), mean_contrast(values)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert found.p == pytest.approx(theirs.pvalue)
    assert mean_contrast(values, unseen=0.01).high > found.high
    with pytest.raises(ValueError, match="needs two"):
        mean_contrast(values[:1])


def test_the_interval_of_a_few_values_is_that_of_student() -> None:
    assert mean_interval(np.array([1.0])) == (None, None)
    assert mean_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
