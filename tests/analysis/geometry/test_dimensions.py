"""Intrinsic dimension of clouds with a known dimension."""

from __future__ import annotations

import numpy as np
import pytest
import skdim
import torch

from analysis.geometry.dimensions import squared_distances, two_nn


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_intrinsic_dimension_equals_scikit_dimension(dimension: int) -> None:
    generator = np.random.default_rng(dimension)
    states = generator.normal(size=(800, dimension)) @ generator.normal(size=(dimension, 30))
    ours = two_nn(squared_distances(torch.from_numpy(states)))
    theirs = skdim.id.TwoNN(method="mle", discard_fraction=0.1).fit(states).dimension_
    assert ours == pytest.approx(theirs, rel=1e-6)
    # Standard error of the estimate: d / sqrt(720).
    assert ours == pytest.approx(dimension, rel=0.2)


def test_copies_count_once_and_too_few_states_have_no_dimension() -> None:
    states = torch.randn(200, 3)
    once = two_nn(squared_distances(states))
    assert two_nn(squared_distances(torch.cat([states, states[:150]]))) == pytest.approx(once)
    assert two_nn(squared_distances(torch.ones(50, 4))) == 0.0
    assert two_nn(squared_distances(torch.randn(2, 4))) == 0.0
    assert two_nn(squared_distances(torch.arange(30.0)[:, None])) == 0.0  # a grid: all ratios are 1
