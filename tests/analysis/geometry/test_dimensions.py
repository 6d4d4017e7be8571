"""Dimensions of clouds with a known dimension, and sharing of subspaces that were planted."""

from __future__ import annotations

import numpy as np
import pytest
import skdim
import torch
from torch import Tensor

from analysis.geometry.dimensions import (
    coding_rate,
    effective_rank,
    participation_ratio,
    principal_directions,
    random_frames,
    sharing_gain,
    squared_distances,
    subspace_overlap,
    two_nn,
)


def _clouds(bases: Tensor, count: int = 400, seed: int = 0) -> Tensor:
    """(L, n, D) Gaussian clouds in the given subspaces (L, D, k), centred."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(len(bases), count, bases.shape[2], generator=generator)
    states = inner @ bases.mT
    return states - states.mean(dim=1, keepdim=True)


def _basis(width: int, rank: int, first: int = 0) -> Tensor:
    return torch.eye(width)[:, first : first + rank]


def test_equal_eigenvalues_count_as_that_many_dimensions() -> None:
    values = torch.tensor([[2.0, 2.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(effective_rank(values), torch.tensor([3.0, 1.0, 0.0]), atol=1e-6)
    assert torch.allclose(participation_ratio(values), torch.tensor([3.0, 1.0, 0.0]), atol=1e-6)


def test_measures_follow_their_formulas() -> None:
    states = torch.randn(1, 300, 7, dtype=torch.float64) * torch.arange(1.0, 8.0)
    states = states - states.mean(dim=1, keepdim=True)
    values = principal_directions(states).values[0]
    expected = np.linalg.eigvalsh(np.cov(states[0].numpy().T, bias=True))[::-1]
    assert np.allclose(values.numpy(), expected)
    share = expected / expected.sum()
    assert float(effective_rank(values)) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert float(participation_ratio(values)) == pytest.approx(expected.sum() ** 2 / (expected**2).sum())
    _, literal = np.linalg.slogdet(np.eye(7) + 7 / 0.25 * np.cov(states[0].numpy().T, bias=True))
    covariance = (states.mT @ states / 300)[0]
    assert float(coding_rate(covariance, 0.5)) == pytest.approx(literal / 2 / np.log(2))


def test_few_states_give_the_same_directions_as_the_covariance() -> None:
    states = torch.randn(2, 12, 30, dtype=torch.float64)
    states = states - states.mean(dim=1, keepdim=True)
    small = principal_directions(states)
    values, vectors = torch.linalg.eigh(states.mT @ states / 12)
    assert torch.allclose(small.values[:, :11], values.flip(-1)[:, :11])
    agreement = torch.einsum("adk,adk->ak", small.directions[:, :, :11], vectors.flip(-1)[:, :, :11]).abs()
    assert torch.allclose(agreement, torch.ones(2, 11, dtype=torch.float64), atol=1e-6)


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


def test_sharing_is_one_for_the_same_directions_and_zero_for_random_ones() -> None:
    frames = random_frames(4, 20, 20, 3, seed=0)
    same = _clouds(_basis(20, 5).expand(4, -1, -1))
    turned = _clouds(random_frames(4, 20, 5, 1, seed=9)[0])
    apart = _clouds(torch.stack([_basis(20, 5, 5 * number) for number in range(4)]))
    found = [sharing_gain(states, principal_directions(states), frames, 0.5) for states in (same, turned, apart)]
    assert found[0].share == pytest.approx(1.0, abs=0.03)
    assert abs(found[1].share) < 0.15
    assert found[2].share < -0.1  # disjoint directions share less than random ones
    for one in found:
        assert one.gain_of_equal >= one.gain
        assert one.gain_of_equal > one.gain_of_random


def test_gain_is_the_sum_of_rates_minus_the_rate_of_the_union() -> None:
    states = _clouds(random_frames(3, 12, 6, 1, seed=1)[0]).double()
    states = states / states.square().sum(-1).mean().sqrt()
    found = sharing_gain(states, principal_directions(states), random_frames(3, 12, 12, 1, seed=0).double(), 0.5)
    each = sum(float(coding_rate(cloud.T @ cloud / len(cloud), 0.5)) for cloud in states)
    union = states.flatten(0, 1)
    assert found.gain == pytest.approx(each - float(coding_rate(union.T @ union / len(union), 0.5)), abs=1e-6)


def test_subspace_overlap_of_planted_subspaces() -> None:
    bases = torch.stack([_basis(40, 4), _basis(40, 4), _basis(40, 4, 2), _basis(40, 4, 20)])
    overlap = subspace_overlap(principal_directions(_clouds(bases)), 4)
    assert torch.allclose(overlap[0], torch.tensor([1.0, 1.0, 0.5, 0.0]), atol=1e-4)
    random = subspace_overlap(principal_directions(_clouds(random_frames(30, 40, 4, 1, seed=2)[0], count=50)), 4)
    off = random[~torch.eye(30, dtype=torch.bool)]
    assert float(off.mean()) == pytest.approx(4 / 40, abs=0.01)


def test_frames_are_orthonormal_and_reproducible() -> None:
    frames = random_frames(2, 9, 4, 3, seed=5)
    torch.manual_seed(1)
    assert torch.equal(frames, random_frames(2, 9, 4, 3, seed=5))
    assert torch.allclose(frames.mT @ frames, torch.eye(4).expand(3, 2, -1, -1), atol=1e-5)


def test_states_that_do_not_vary_share_nothing() -> None:
    states = torch.zeros(3, 10, 5)
    found = sharing_gain(states, principal_directions(states), random_frames(3, 5, 5, 2, seed=0), 0.5)
    assert (found.gain, found.share) == (0.0, 0.0)
