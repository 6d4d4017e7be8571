"""Calibration against the published implementation, and its behaviour under the null."""

from __future__ import annotations

import pytest
import torch
from calibrated_similarity import calibrate as published_calibrate
from calibrated_similarity import calibrate_layers as published_calibrate_layers
from torch import Tensor

from analysis.geometry.calibration import calibrate, draw_permutations, draw_signs


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(first, second, dim=1).mean().abs()


@pytest.mark.parametrize("signal", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_equals_the_published_algorithm(signal: float, alpha: float) -> None:
    first = torch.randn(40, 6)
    second = signal * first + torch.randn(40, 6)
    permutations = draw_permutations(40, 60, seed=1)
    null = torch.stack([_cosine(first, second[permutation]) for permutation in permutations])
    ours = calibrate(_cosine(first, second), null, alpha=alpha)
    queue = iter(permutations)
    theirs = published_calibrate(first, second, _cosine, K=60, alpha=alpha, perm_fn=lambda n, device: next(queue))
    for mine, published in zip((ours.score, ours.p, ours.threshold), theirs, strict=True):
        assert float(mine) == pytest.approx(float(published), abs=1e-6)


def test_an_aggregate_over_layers_equals_the_published_one_on_its_diagonal() -> None:
    """The published aggregate takes all pairs of layers; with a mean over the diagonal both are the same."""
    first = [torch.randn(30, 5) for _ in range(3)]
    second = [0.4 * layer + torch.randn(30, 5) for layer in first]
    permutations = draw_permutations(30, 50, seed=2)
    observed = torch.stack([_cosine(x, y) for x, y in zip(first, second, strict=True)]).mean()
    null = torch.stack(
        [
            torch.stack([_cosine(x, y[permutation]) for x, y in zip(first, second, strict=True)]).mean()
            for permutation in permutations
        ]
    )
    ours = calibrate(observed, null)
    queue = iter(permutations)
    theirs = published_calibrate_layers(
        first, second, _cosine, agg=lambda s: s.diagonal().mean(), K=50, perm_fn=lambda n, device: next(queue)
    )
    assert float(ours.score) == pytest.approx(float(theirs[0]), abs=1e-6)
    assert float(ours.p) == pytest.approx(float(theirs[1]), abs=1e-6)


def test_under_the_null_scores_are_zero_and_p_is_uniform() -> None:
    generator = torch.Generator().manual_seed(5)
    draws = torch.randn(200, 2000, generator=generator)
    found = calibrate(draws[0], draws[1:], alpha=0.05)
    # 2,000 binomial trials: five standard errors around 5 %.
    assert abs(float((found.score > 0).double().mean()) - 0.05) < 0.025
    assert abs(float(found.p.mean()) - 0.5) < 0.04
    assert abs(float((found.p <= 0.25).double().mean()) - 0.25) < 0.05


def test_score_is_one_at_the_maximum_and_zero_below_the_threshold() -> None:
    null = torch.linspace(0, 0.5, 99)[:, None].expand(-1, 3)
    found = calibrate(torch.tensor([1.0, 0.1, 0.75]), null)
    assert found.score[0] == 1
    assert found.score[1] == 0
    assert 0 < float(found.score[2]) < 1
    assert float(found.p[0]) == pytest.approx(1 / 100)


def test_a_null_that_reaches_the_maximum_gives_zero() -> None:
    found = calibrate(torch.tensor([1.0]), torch.ones(50, 1))
    assert float(found.score) == 0
    assert float(found.p) == 1


def test_draws_are_a_function_of_their_seed() -> None:
    first = draw_permutations(20, 5, seed=3)
    torch.manual_seed(99)
    assert torch.equal(first, draw_permutations(20, 5, seed=3))
    assert not torch.equal(first, draw_permutations(20, 5, seed=4))
    assert torch.equal(first.sort(dim=1).values, torch.arange(20).expand(5, -1))
    assert set(draw_signs(20, 5, seed=3).unique().tolist()) == {-1.0, 1.0}


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="do not belong"):
        calibrate(torch.zeros(3), torch.zeros(10, 4))
    with pytest.raises(ValueError, match="alpha"):
        calibrate(torch.zeros(3), torch.zeros(10, 3), alpha=1.0)
