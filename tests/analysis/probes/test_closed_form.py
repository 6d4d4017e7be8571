"""Closed-form probes against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.probes.closed_form import fit_lda, fit_ridge


def _states(rows: int = 600, width: int = 12, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    features = generator.normal(size=(rows, width)) + 0.8 * generator.normal(size=(classes, width))[labels]
    return features * np.exp(generator.normal(size=width)) + 3, labels


def _masks(rows: int) -> np.ndarray:
    return np.random.default_rng(1).random((2, rows)) < np.array([[0.7], [0.3]])


@pytest.mark.parametrize("penalty", [1.0, 50.0])
def test_ridge_equals_scikit_learn(penalty: float) -> None:
    features, labels = _states()
    train = _masks(600)
    scores = fit_ridge(torch.from_numpy(features), torch.from_numpy(labels), torch.from_numpy(train), 4, penalty)
    for problem, rows in enumerate(train):
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=penalty)).fit(features[rows], labels[rows])
        assert np.allclose(scores[problem].numpy(), model.decision_function(features), atol=1e-8)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_lda_equals_scikit_learn(shrinkage: float) -> None:
    features, labels = _states()
    train = _masks(600)
    scores = fit_lda(torch.from_numpy(features), torch.from_numpy(labels), torch.from_numpy(train), 4, shrinkage)
    for problem, rows in enumerate(train):
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None)
        model = make_pipeline(StandardScaler(), lda).fit(features[rows], labels[rows])
        assert np.allclose(scores[problem].numpy(), model.decision_function(features), atol=1e-8)


def test_degenerate_input() -> None:
    features, labels = torch.ones(20, 3), torch.arange(20) % 2
    train = torch.ones(1, 20, dtype=torch.bool)
    for scores in (fit_ridge(features, labels, train, 2), fit_lda(features, labels, train, 2)):
        assert bool(torch.isfinite(scores).all())
    one_class = fit_lda(torch.randn(20, 3), torch.zeros(20, dtype=torch.long), train, 2)
    assert bool((one_class.argmax(2) == 0).all())
