"""Expected overlaps and their p-values against brute force, scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, hypergeom

from analysis.experts import nulls

PAIRS = np.array([[0, 1], [0, 2], [1, 2]])


def random_sets(num_units: int, k: int, concepts: int = 4, languages: int = 3) -> np.ndarray:
    generator = np.random.default_rng(0)
    sets = [generator.permutation(num_units)[:k] for _ in range(languages * concepts)]
    return np.stack(sets).reshape(languages, concepts, k)


def test_intersections_equal_sets_in_a_loop() -> None:
    units = random_sets(40, 9)
    counts = nulls.intersections(units, units[::-1], 40)
    for one in range(3):
        for c in range(4):
            for other in range(3):
                for d in range(4):
                    assert counts[one, c, other, d] == len(set(units[one, c]) & set(units[::-1][other, d]))
    counts = nulls.intersections(units, units, 40)
    matched = nulls.matched(counts, PAIRS)
    mismatched = nulls.mismatched(counts, PAIRS, np.arange(4))
    apart = nulls.mismatched(counts, PAIRS, np.array([0, 0, 1, 2]))
    assert mismatched is not None
    assert apart is not None
    for place, (one, other) in enumerate(PAIRS):
        for c in range(4):
            assert matched[c, place] == counts[one, c, other, c]
            rest = [counts[one, c, other, d] + counts[one, d, other, c] for d in range(4) if d != c]
            assert mismatched[c, place] == pytest.approx(sum(rest) / 6)
        rest = [counts[one, 1, other, d] + counts[one, d, other, 1] for d in (2, 3)]
        assert apart[1, place] == pytest.approx(sum(rest) / 4), "concepts of one cluster are not another concept"
    assert nulls.mismatched(counts, PAIRS, np.zeros(4)) is None
    both = nulls.both_ways(counts)
    np.testing.assert_allclose(both, np.transpose(both, (2, 3, 0, 1)))


def test_stratified_expectation_by_hand_and_by_simulation() -> None:
    offsets = np.array([0, 10, 40])
    units = np.array([[[0, 1, 2, 15]], [[0, 5, 20, 30]]])  # 3 + 1 and 2 + 2 of sites with 10 and 30 units
    expected = nulls.stratified(units, np.array([[0, 1]]), offsets)
    np.testing.assert_allclose(expected, [[[3 * 2 / 10, 1 * 2 / 30]]])
    generator = np.random.default_rng(0)
    drawn = [
        len(set(generator.permutation(10)[:3]) & set(generator.permutation(10)[:2]))
        + len(set(generator.permutation(30)[:1]) & set(generator.permutation(30)[:2]))
        for _ in range(4000)
    ]
    assert np.mean(drawn) == pytest.approx(expected.sum(), abs=0.05)


def test_p_is_the_hypergeometric_tail_and_its_convolution() -> None:
    for total in (0, 1, 5, 20):
        assert nulls.overlap_p(total, 1000, 50, 1) == pytest.approx(hypergeom.sf(total - 1, 1000, 50, 50), rel=1e-9)
    pmf = hypergeom.pmf(np.arange(51), 1000, 50, 50)
    three = np.convolve(np.convolve(pmf, pmf), pmf)
    for total in (3, 8, 30):
        assert nulls.overlap_p(total, 1000, 50, 3) == pytest.approx(three[total:].sum(), rel=1e-9)
    assert 0.0 < nulls.overlap_p(60, 221_184, 500, 1) < 1e-80
    assert nulls.overlap_p(500 * 64, 221_184, 500, 64) >= 0.0


def test_reach_of_random_sets() -> None:
    num_units, k, languages = 500, 60, 6
    for threshold in (2, 3, 6):
        expected = binom.sf(threshold - 1, languages, k / num_units) * num_units / k
        assert nulls.at_least(languages, threshold, num_units, k) == pytest.approx(expected)
