"""Concept directions on planted clouds: shared by the languages, or each language's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from analysis.geometry.directions import HalfLabels, score_directions

LANGUAGES, CONCEPTS, COUNT, WIDTH = 3, 4, 240, 24


def planted(*, shared: bool, strength: float = 3.0, seed: int = 0) -> tuple[list[Tensor], list[HalfLabels]]:
    """Sentences with one concept each, moved along its direction; every language has an offset of its own."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(LANGUAGES, WIDTH, WIDTH, generator=generator))[0]
    states, labels = [], []
    for language in range(LANGUAGES):
        carried = torch.arange(COUNT) % CONCEPTS
        half = torch.arange(COUNT) // CONCEPTS % 2
        direction = axes[0 if shared else language, :CONCEPTS]
        offset = 5 * torch.randn(WIDTH, generator=generator)
        states.append(torch.randn(COUNT, WIDTH, generator=generator) + offset + strength * direction[carried])
        member = torch.stack([carried == concept for concept in range(CONCEPTS)])
        inside = torch.stack([half == side for side in (0, 1)])[:, None]
        labels.append(HalfLabels(member & inside, ~member & inside))
    return states, labels


def test_shared_directions_transfer_and_own_ones_do_not() -> None:
    own = np.eye(LANGUAGES, dtype=bool)
    shared, apart = (score_directions(*planted(shared=which)) for which in (True, False))
    for found in (shared, apart):
        assert found.auroc[own].min() > 0.95
        assert found.cosine[own].min() > 0.7
    assert shared.auroc[~own].min() > 0.95
    assert shared.cosine[~own].min() > 0.7
    assert apart.auroc[~own].mean() == pytest.approx(0.5, abs=0.15)
    assert apart.cosine[~own].mean() == pytest.approx(0.0, abs=0.15)


def test_nothing_planted_is_at_chance() -> None:
    found = [score_directions(*planted(shared=True, strength=0.0, seed=seed)) for seed in range(8)]
    assert np.mean([one.auroc for one in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([one.cosine for one in found]) == pytest.approx(0.0, abs=0.03)


def test_auroc_is_scikit_learns() -> None:
    states, labels = planted(shared=True, strength=1.0)
    found = score_directions(states, labels)
    expected = []
    for half in (0, 1):
        yes, no = (side[1 - half, 2] for side in (labels[0].positives, labels[0].negatives))
        direction = states[0][yes].mean(dim=0) - states[0][no].mean(dim=0)
        positives, negatives = (side[half, 2] for side in (labels[1].positives, labels[1].negatives))
        chosen = positives | negatives
        expected.append(roc_auc_score(positives[chosen].numpy(), (states[1][chosen] @ direction).numpy()))
    assert found.auroc[0, 1, 2] == pytest.approx(np.mean(expected), abs=1e-6)
