"""Within-site rank correlation equals scipy's, site by site."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from analysis.experts.correlation import RankCorrelation


def test_weighted_mean_of_spearman_within_sites_between_halves() -> None:
    generator = np.random.default_rng(0)
    sites = [[np.round(generator.random((2, 2, size)), 1) for _ in range(2)] for size in (20, 50)]
    found = RankCorrelation(4)
    for one, other in sites:
        found.update(one, other)
    expected = np.zeros((4, 4))
    for one, other in sites:
        both = np.concatenate([one.reshape(4, -1), other.reshape(4, -1)])
        expected += one.shape[-1] * spearmanr(both.T).statistic[:4, 4:] / 70
    np.testing.assert_allclose(found.result(), expected)


def test_level_differences_between_sites_are_no_agreement() -> None:
    generator = np.random.default_rng(0)
    found = RankCorrelation(2)
    for level in range(50):
        found.update(level + generator.random((2, 40)), level + generator.random((2, 40)))
    assert np.abs(found.result()).max() < 0.1


def test_constant_scores_correlate_with_nothing() -> None:
    found = RankCorrelation(2)
    scores = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    found.update(scores, scores)
    np.testing.assert_allclose(found.result(), [[0.0, 0.0], [0.0, 1.0]])
