"""Closed-form probes against scikit-learn, the MLP on what no linear probe can read, the code length by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.probes.alternatives import FLOOR, fit_lda, fit_mlp, fit_ridge, online_code


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


def test_mlp_reads_what_no_linear_probe_can() -> None:
    """Exclusive or of two signs."""
    features = torch.randn(1200, 6)
    labels = ((features[:, 0] > 0) ^ (features[:, 1] > 0)).long()
    train = torch.zeros(2, 1200, dtype=torch.bool)
    train[0, :800] = True
    train[1, 400:] = True
    test = ~train
    scores = fit_mlp(features, labels, train, 2, [0, 1], steps=800)
    linear = fit_ridge(features, labels, train, 2)
    for problem in range(2):
        assert float((scores[problem].argmax(1) == labels)[test[problem]].float().mean()) > 0.9
        assert float((linear[problem].argmax(1) == labels)[test[problem]].float().mean()) < 0.6


def test_mlp_is_a_function_of_its_seeds_and_of_its_own_rows() -> None:
    values, labels = _states()
    features, truth = torch.from_numpy(values).float(), torch.from_numpy(labels)
    train = torch.from_numpy(_masks(600))
    state = torch.get_rng_state()
    both = fit_mlp(features, truth, train, 4, [3, 4], steps=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(both, fit_mlp(features, truth, train, 4, [3, 4], steps=10))
    assert not torch.equal(both[0], fit_mlp(features, truth, train, 4, [5, 4], steps=10)[0])
    changed = truth.clone()
    changed[~train[0]] = 0  # labels that problem 0 does not train on
    again = fit_mlp(features, changed, train, 4, [3, 4], steps=10)
    assert torch.allclose(again[0], both[0], atol=1e-4)
    with torch.inference_mode():
        assert torch.equal(fit_mlp(features, truth, train, 4, [3, 4], steps=10), both)


def test_code_length_by_hand() -> None:
    values, labels = _states(rows=64, width=3, classes=2)
    features = torch.from_numpy(values)
    fractions = (0.25, 0.5, 1.0)
    expected = 16.0  # the first block: one bit a label
    for start, end in ((16, 32), (32, 64)):
        scaler = StandardScaler().fit(values[:start])
        model = LogisticRegression(tol=1e-10, max_iter=10_000).fit(scaler.transform(values[:start]), labels[:start])
        probability = model.predict_proba(scaler.transform(values[start:end]))[
            np.arange(end - start), labels[start:end]
        ]
        expected -= np.log2((1 - FLOOR) * probability + FLOOR / 2).sum()
    code = online_code(features, torch.from_numpy(labels), 2, fractions)
    assert code.bits == pytest.approx(expected, rel=1e-3)
    assert code.compression == pytest.approx(64 / code.bits)


def test_labels_that_can_be_read_off_compress_and_others_do_not() -> None:
    labels = torch.arange(2000) % 4
    readable = torch.nn.functional.one_hot(labels, 4).float() + 0.1 * torch.randn(2000, 4)
    noise = torch.randn(2000, 4)
    assert online_code(readable, labels, 4).compression > 10
    assert 0.85 < online_code(noise, labels, 4).compression < 1.02


def test_a_class_that_comes_late_costs_few_bits() -> None:
    labels = torch.cat([torch.arange(100) % 2, torch.full((100,), 2)])
    code = online_code(torch.randn(200, 3), labels, 3, (0.1, 0.5, 1.0))
    assert math.isfinite(code.bits)
    assert code.bits < 100 * math.log2(3 / FLOOR) + 400


def test_degenerate_input() -> None:
    features, labels = torch.ones(20, 3), torch.arange(20) % 2
    train = torch.ones(1, 20, dtype=torch.bool)
    for scores in (fit_ridge(features, labels, train, 2), fit_lda(features, labels, train, 2)):
        assert bool(torch.isfinite(scores).all())
    one_class = fit_lda(torch.randn(20, 3), torch.zeros(20, dtype=torch.long), train, 2)
    assert bool((one_class.argmax(2) == 0).all())
    with pytest.raises(ValueError, match="no training row"):
        fit_ridge(features, labels, ~train, 2)
    with pytest.raises(ValueError, match="NaN"):
        fit_lda(features * torch.nan, labels, train, 2)
    with pytest.raises(ValueError, match="seeds"):
        fit_mlp(features, labels, train, 2, [0, 1])
    with pytest.raises(ValueError, match="fractions"):
        online_code(features, labels, 2, (0.5, 0.2, 1.0))
    with pytest.raises(ValueError, match="at least two"):
        online_code(features[:1], labels[:1], 2)
