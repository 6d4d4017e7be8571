"""Within-site rank correlation equals scipy's, site by site."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from analysis.experts.correlation import RankCorrelation


def test_weighted_mean_of_spearman_within_sites() -> None:
    generator = np.random.default_rng(0)
    sites = [np.round(generator.random((2, 2, size)), 1) for size in (20, 50)]
    found = RankCorrelation(4)
    for site in sites:
        found.update(site)
    expected = sum(site.shape[-1] * spearmanr(site.reshape(4, -1).T).statistic for site in sites) / 70
    np.testing.assert_allclose(found.result(), expected)


def test_level_differences_between_sites_are_no_agreement() -> None:
    generator = np.random.default_rng(0)
    found = RankCorrelation(2)
    for level in range(50):
        found.update(level + generator.random((2, 40)))
    assert abs(found.result()[0, 1]) < 0.1


def test_constant_scores_correlate_with_nothing() -> None:
    found = RankCorrelation(2)
    found.update(np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]]))
    np.testing.assert_allclose(found.result(), [[0.0, 0.0], [0.0, 1.0]])
