"""Intrinsic dimension of clouds with a known dimension."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skdim
import torch

from analysis.geometry.dimensions import squared_distances, two_nn


def dimension(states: torch.Tensor) -> float:
    """With all states."""
    return two_nn(squared_distances(states), torch.zeros(len(states), dtype=torch.int64), 0)[0]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_intrinsic_dimension_equals_scikit_dimension(size: int) -> None:
    generator = np.random.default_rng(size)
    states = generator.normal(size=(800, size)) @ generator.normal(size=(size, 30))
    ours = dimension(torch.from_numpy(states))
    theirs = skdim.id.TwoNN(method="mle", discard_fraction=0.1).fit(states).dimension_
    assert ours == pytest.approx(theirs, rel=1e-6)
    # Standard error of the estimate: d / sqrt(720).
    assert ours == pytest.approx(size, rel=0.2)


def test_copies_count_once_and_too_few_states_have_no_dimension() -> None:
    states = torch.randn(200, 3)
    once = dimension(states)
    assert dimension(torch.cat([states, states[:150]])) == pytest.approx(once)
    assert math.isnan(dimension(torch.ones(50, 4)))
    assert math.isnan(dimension(torch.randn(2, 4)))
    assert math.isnan(dimension(torch.arange(30.0)[:, None]))  # a grid: all ratios are 1


def test_leaving_a_bucket_out_equals_the_estimate_without_it() -> None:
    """Copies across buckets, and a bucket so large that most nearest neighbours are in it."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(300, 3, generator=generator)
    states[200:240] = states[:40]
    bucket = torch.randint(0, 4, (300,), generator=generator)
    bucket[torch.rand(300, generator=generator) < 0.85] = 2
    found = two_nn(squared_distances(states), bucket, 4)
    expected = [dimension(states), *(dimension(states[bucket != left_out]) for left_out in range(4))]
    assert found == pytest.approx(expected, rel=1e-9)
