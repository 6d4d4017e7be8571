"""The exact trend test: planted trends, nulls, ties, and what too few runs can and cannot show."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from analysis.report.capacity.trend import trend_test

WIDTHS = (64, 128, 256, 512)


def family(seeds: int) -> tuple[list[int], list[int]]:
    return list(WIDTHS) * seeds, [seed for seed in range(seeds) for _ in WIDTHS]


def test_a_falling_measure_is_found() -> None:
    x, blocks = family(3)
    y = [-width + 3 * seed for width, seed in zip(x, blocks, strict=True)]
    trend = trend_test(x, y, blocks)
    assert trend.correlation < -0.9
    assert trend.p == pytest.approx(2 / 24**3)
    assert trend.p == trend.smallest_p


def test_the_direction_is_that_of_the_deviation_within_blocks() -> None:
    """Two seeds of small runs with little and of large runs with much: within each it falls, over all it rises."""
    x, blocks = [1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 0, 0, 1, 1, 1, 1]
    trend = trend_test(x, [4, 3, 2, 1, 8, 7, 6, 5], blocks)
    assert trend.correlation > 0
    assert trend.direction == -1
    assert trend.p == pytest.approx(2 / 24**2)
    assert trend_test(x, [1, 2, 3, 4, 5, 6, 7, 8], blocks).direction == 1
    assert trend_test(x, [1.0] * 8, blocks).direction == 0


def test_p_counts_the_exchanges_within_blocks() -> None:
    generator = np.random.default_rng(1)
    x, blocks = [1, 2, 3, 1, 2, 3], [0, 0, 0, 1, 1, 1]
    y = generator.normal(size=6)
    ranks = stats.rankdata(y)
    found = [float(np.array([*first, *second]) @ ranks) for first, second in product(permutations([1, 2, 3]), repeat=2)]
    observed = float(np.array(x) @ ranks)
    far = [abs(value - np.mean(found)) >= abs(observed - np.mean(found)) - 1e-9 for value in found]
    assert trend_test(x, y, blocks).p == pytest.approx(np.mean(far))
    assert trend_test(x, y, blocks).correlation == pytest.approx(stats.spearmanr(x, y).statistic)


def test_under_the_null_p_is_not_too_small_too_often() -> None:
    generator = np.random.default_rng(0)
    x, blocks = family(2)
    p = np.array([trend_test(x, generator.normal(size=8), blocks).p for _ in range(400)])
    # Binomial(400, .05) exceeds 36 with probability below 1 in 2,000.
    assert (p <= 0.05).sum() <= 36
    assert p.mean() > 0.4


def test_differences_between_seeds_alone_are_no_trend() -> None:
    x, blocks = family(3)
    trend = trend_test(x, [10.0 * seed for seed in blocks], blocks)
    assert trend.p == 1.0


@pytest.mark.parametrize(("seeds", "decided"), [(1, False), (2, True)])
def test_one_seed_of_four_sizes_can_never_decide(seeds: int, decided: bool) -> None:
    x, blocks = family(seeds)
    trend = trend_test(x, [-float(width) for width in x], blocks)
    assert trend.decided() is decided
    assert trend.smallest_p == pytest.approx(2 / 24**seeds)


def test_a_measure_that_never_changes_has_no_trend() -> None:
    trend = trend_test(WIDTHS, [1.0] * 4, [0] * 4)
    assert (trend.correlation, trend.p, trend.smallest_p) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("x", "y", "blocks", "message"),
    [
        ([], [], [], "one length above 0"),
        ([1, 2], [1.0], [0, 0], "one length"),
        ([1, 2], [1.0, float("nan")], [0, 0], "not finite"),
        (list(range(9)), [0.0] * 9, [0] * 9, "at most 8"),
    ],
)
def test_refusals_name_the_culprit(x: list[int], y: list[float], blocks: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trend_test(x, y, blocks)
