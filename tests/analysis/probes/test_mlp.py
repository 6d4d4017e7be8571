"""The MLP probe on what no linear probe can read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.probes.logistic import fit_logistic
from analysis.probes.mlp import fit_mlp


def _states(rows: int = 600, width: int = 12, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    features = generator.normal(size=(rows, width)) + 0.8 * generator.normal(size=(classes, width))[labels]
    return features * np.exp(generator.normal(size=width)) + 3, labels


def _masks(rows: int) -> np.ndarray:
    return np.random.default_rng(1).random((2, rows)) < np.array([[0.7], [0.3]])


def test_mlp_reads_what_no_linear_probe_can() -> None:
    """Exclusive or of two signs."""
    features = torch.randn(1200, 6)
    labels = ((features[:, 0] > 0) ^ (features[:, 1] > 0)).long()
    train = torch.zeros(2, 1200, dtype=torch.bool)
    train[0, :800] = True
    train[1, 400:] = True
    test = ~train
    scores = fit_mlp([features] * 2, [labels] * 2, list(train), 2, [0, 1], steps=800)
    linear = fit_logistic(features, labels, train, 2).predictions()
    for problem in range(2):
        assert float((scores[problem].argmax(1) == labels)[test[problem]].float().mean()) > 0.9
        assert float((linear[problem] == labels)[test[problem]].float().mean()) < 0.6


def test_mlp_is_a_function_of_its_seeds_and_of_its_own_rows() -> None:
    values, labels = _states()
    features, truth = torch.from_numpy(values).float(), torch.from_numpy(labels)
    train = list(torch.from_numpy(_masks(600)))
    state = torch.get_rng_state()

    def fit(seeds: list[int], second: torch.Tensor = truth) -> list[torch.Tensor]:
        return fit_mlp([features] * 2, [truth, second], train, 4, seeds, steps=10)

    both = fit([3, 4])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, both, fit([3, 4])))
    assert not torch.equal(both[0], fit([5, 4])[0])
    changed = truth.clone()
    changed[~train[1]] = 0  # labels that it does not train on
    assert torch.allclose(fit([3, 4], changed)[1], both[1], atol=1e-4)
    with torch.inference_mode():
        assert all(map(torch.equal, fit([3, 4]), both))


def test_problems_of_unequal_length_do_not_know_of_each_other() -> None:
    values, labels = _states()
    features, truth = torch.from_numpy(values).float(), torch.from_numpy(labels)
    rows = torch.from_numpy(_masks(600)[0])
    short = features[:400] * 2, truth[:400], rows[:400]
    alone = fit_mlp([features], [truth], [rows], 4, [3], steps=10)
    beside = fit_mlp([short[0], features], [short[1], truth], [short[2], rows], 4, [9, 3], steps=10)
    assert [len(scores) for scores in beside] == [400, 600]
    torch.testing.assert_close(beside[1], alone[0], atol=1e-4, rtol=1e-4)


def test_degenerate_input_is_named() -> None:
    features, labels = torch.ones(20, 3), torch.arange(20) % 2
    train = torch.ones(20, dtype=torch.bool)
    with pytest.raises(ValueError, match="no training row"):
        fit_mlp([features], [labels], [~train], 2, [0])
    with pytest.raises(ValueError, match="NaN"):
        fit_mlp([features * torch.nan], [labels], [train], 2, [0])
    with pytest.raises(ValueError, match="seeds"):
        fit_mlp([features], [labels], [train], 2, [0, 1])
