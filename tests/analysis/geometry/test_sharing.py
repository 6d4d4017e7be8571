"""Sharing of covariances on planted populations: the same number at every width."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import t
from torch import Tensor

from analysis.geometry.sharing import CovarianceSharing, share_covariance

LANGUAGES, PER_LANGUAGE, BUCKETS, PER_SENTENCE = 10, 400, 20, 4


def clouds(roots: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """States (N, D) with covariances root @ root.T from (L, D, k), their languages and buckets."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(len(roots), PER_LANGUAGE, roots.shape[2], generator=generator)
    states = (inner @ roots.mT).flatten(0, 1)
    language = torch.arange(len(roots)).repeat_interleave(PER_LANGUAGE)
    bucket = (torch.arange(PER_LANGUAGE) // PER_SENTENCE % BUCKETS).repeat(len(roots))
    return states, language, bucket


def _shared(states: Tensor, language: Tensor, bucket: Tensor, leave_out: int | None = None) -> CovarianceSharing:
    counted = torch.arange(int(language.max()) + 1) != (-1 if leave_out is None else leave_out)
    return share_covariance(states, language, bucket, BUCKETS, counted)


def spectrum(width: int, power: float = 1.0) -> Tensor:
    return torch.arange(1, width + 1).float() ** (-power / 2)


def rotations(width: int, number: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(number, width, width, generator=generator))[0]


@pytest.mark.parametrize("width", [32, 64, 128, 256, 512])
def test_equal_populations_share_everything_at_every_width(width: int) -> None:
    root = rotations(width, 1)[0] * spectrum(width)
    found = _shared(*clouds(root.expand(LANGUAGES, -1, -1)))
    assert float(found.overall[0]) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("width", [32, 128, 512])
def test_unrelated_directions_share_nothing_at_every_width(width: int) -> None:
    found = _shared(*clouds(rotations(width, LANGUAGES) * spectrum(width)))
    assert float(found.overall[0]) == pytest.approx(0.0, abs=0.06)


@pytest.mark.parametrize("width", [32, 128, 512])
def test_half_shared_is_half_at_every_width(width: int) -> None:
    """Half of the variance in common directions, half in directions of the language's own: tr C C' halves."""
    turned = rotations(width, LANGUAGES + 1)
    common = turned[0, :, :8].expand(LANGUAGES, -1, -1)
    found = _shared(*clouds(torch.cat([common, turned[1:, :, :8]], dim=2)))
    assert float(found.overall[0]) == pytest.approx(0.5, abs=0.08)


def test_pairs_are_told_apart_and_a_language_is_one_with_itself() -> None:
    turned = rotations(48, 3) * spectrum(48)
    found = _shared(*clouds(turned[[0, 0, 1, 2]])).pairs[0]
    assert float(found[0, 1]) == pytest.approx(1.0, abs=0.1)
    assert torch.allclose(found.diagonal(), torch.ones(4, dtype=torch.float64))
    assert found[0, 2].abs() < 0.15
    assert torch.allclose(found, found.mT)


def test_a_language_that_does_not_count_is_in_no_pair_of_the_mean() -> None:
    turned = rotations(48, 2) * spectrum(48)
    found = _shared(*clouds(turned[[0, 0, 1]]), leave_out=2)
    assert torch.allclose(found.overall, found.pairs[:, 0, 1])
    assert float(_shared(*clouds(turned[[0, 0, 1]])).overall[0]) < 0.5 < float(found.overall[0])


def test_a_huge_coordinate_does_not_decide_alone() -> None:
    states, language, bucket = clouds(rotations(64, LANGUAGES) * spectrum(64))
    states[:, 5] *= 1000
    assert abs(float(_shared(states, language, bucket).overall[0])) < 0.1


def test_the_jackknife_covers() -> None:
    covered, root = 0, rotations(32, 1)[0] * spectrum(32)
    for seed in range(60):
        values = _shared(*clouds(root.expand(3, -1, -1), seed)).overall.numpy()
        half = t.ppf(0.975, BUCKETS - 1) * np.sqrt(
            (BUCKETS - 1) / BUCKETS * ((values[1:] - values[1:].mean()) ** 2).sum()
        )
        covered += abs(values[0] - 1) < half
    assert covered >= 53  # 95 % of 60 are 57, and 53 is four standard errors below


def test_states_without_any_direction_have_no_sharing() -> None:
    states, language, bucket = clouds(rotations(16, 2) * spectrum(16))
    found = _shared(torch.zeros_like(states), language, bucket)
    assert torch.isnan(found.overall).all()
    with pytest.raises(ValueError, match="fewer than two states"):
        _shared(states, language, torch.zeros_like(bucket))
