"""The batched solver against scikit-learn, and what it does with degenerate input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from analysis.probes.logistic import LogisticFit, fit_logistic
from tests.analysis.probes.objectives import objectives


def _states(rows: int, width: int, classes: int, decay: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features like hidden states: a power-law spectrum, offsets and one dimension far larger than the rest."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    centres = 0.5 * generator.normal(size=(classes, width))
    basis, _ = np.linalg.qr(generator.normal(size=(width, width)))
    features = ((generator.normal(size=(rows, width)) + centres[labels]) * np.arange(1, width + 1) ** -decay) @ basis
    features = features * np.exp(0.5 * generator.normal(size=width)) + 2 * generator.normal(size=width)
    features[:, 1] *= 50
    return features.astype(np.float32), labels


def _reference(
    features: np.ndarray, labels: np.ndarray, train: np.ndarray, penalty: float = 1.0
) -> tuple[float, np.ndarray]:
    """scikit-learn in double precision, run to the end: mean objective and predictions of all rows."""
    scaler = StandardScaler().fit(features[train].astype(np.float64))
    scaled = scaler.transform(features.astype(np.float64))
    model = LogisticRegression(C=penalty, tol=1e-10, max_iter=50_000).fit(scaled[train], labels[train])
    log_likelihood = model.predict_log_proba(scaled[train])
    columns = np.searchsorted(model.classes_, labels[train])
    loss = -log_likelihood[np.arange(len(columns)), columns].mean()
    return loss + (model.coef_**2).sum() / (2 * penalty * train.sum()), model.predict(scaled)


def _objectives(
    fit: LogisticFit, features: np.ndarray, labels: np.ndarray, train: np.ndarray, penalty: float = 1.0
) -> torch.Tensor:
    return objectives(fit, *map(torch.from_numpy, (features, labels, train)), penalty)


def _fit(features: np.ndarray, labels: np.ndarray, train: np.ndarray, classes: int, **options: float) -> LogisticFit:
    return fit_logistic(
        torch.from_numpy(features), torch.from_numpy(labels), torch.from_numpy(train), classes, **options
    )


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 0.01])
def test_optimum_is_that_of_scikit_learn_for_every_seed(decay: float, penalty: float) -> None:
    features, labels = _states(1500, 24, 5, decay)
    train = np.random.default_rng(1).random((3, 1500)) < 0.7
    fit = _fit(features, labels, train, 5, inverse_penalty=penalty)
    assert bool(fit.converged.all())
    found = _objectives(fit, features, labels, train, penalty)
    for problem in range(3):
        objective, predictions = _reference(features, labels, train[problem], penalty)
        assert abs(float(found[problem]) - objective) < 1e-6
        assert np.mean(fit.predictions()[problem].numpy() == predictions) > 0.998


def test_two_classes_follow_the_binomial_convention() -> None:
    features, labels = _states(600, 12, 2, 0.5)
    train = np.ones((1, 600), dtype=bool)
    objective, _ = _reference(features, labels, train[0])
    # |w|^2 of the binomial model is twice the sum over both softmax vectors: the optimal values are the same.
    fit = _fit(features, labels, train, 2)
    assert abs(float(_objectives(fit, features, labels, train)[0]) - objective) < 1e-6


def test_problems_do_not_influence_each_other() -> None:
    features, labels = _states(800, 16, 4, 0.5)
    generator = np.random.default_rng(2)
    train = generator.random((4, 800)) < np.array([0.9, 0.5, 0.2, 0.7])[:, None]
    many = np.stack([labels, labels, labels, generator.permutation(labels)])
    together = _fit(features, many, train, 4)
    found = _objectives(together, features, many, train)
    for problem in range(4):
        rows = train[problem : problem + 1]
        alone = _fit(features, many[problem], rows, 4)
        expected = _objectives(alone, features, many[problem], rows)
        assert float(found[problem]) == pytest.approx(float(expected[0]), abs=3e-7)
        assert torch.allclose(together.logits[problem], alone.logits[0], atol=0.05)


def test_coefficients_in_raw_coordinates_give_the_logits() -> None:
    features, labels = _states(500, 10, 3, 0.5)
    train = np.random.default_rng(3).random((2, 500)) < 0.6
    fit = _fit(features.astype(np.float64), labels, train, 3)
    again = np.einsum("pkd,nd->pkn", fit.coefficients.numpy(), features) + fit.intercepts.numpy()[:, :, None]
    assert np.allclose(again, fit.logits.numpy(), atol=1e-6)


def test_gradient_of_the_stated_objective_is_zero_at_the_solution() -> None:
    features, labels = _states(400, 8, 3, 0.0)
    train = np.ones((1, 400), dtype=bool)
    fit = _fit(features.astype(np.float64), labels, train, 3, tolerance=1e-14)
    scaled = torch.from_numpy(StandardScaler().fit_transform(features.astype(np.float64)))
    weights = (
        fit.coefficients[0] * torch.from_numpy(features.astype(np.float64)).std(0, correction=0)
    ).requires_grad_()
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    # The bias of the standardised problem is free: take the one that gives the fitted logits.
    offset = (fit.logits[0].T - scaled @ weights.detach().T).mean(0)
    logits = scaled @ weights.T + bias + offset
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)) + weights.square().sum() / (2 * 400)
    loss.backward()
    assert float(weights.grad.abs().max()) < 1e-6
    assert float(bias.grad.abs().max()) < 1e-6
    assert float(loss.detach()) == pytest.approx(
        float(_objectives(fit, features.astype(np.float64), labels, train)[0]), abs=1e-9
    )


def test_constant_and_collinear_features_change_nothing() -> None:
    features, labels = _states(600, 8, 3, 0.5)
    train = np.ones((1, 600), dtype=bool)
    padded = np.concatenate([features, np.full((600, 2), 7.3, np.float32), features[:, :1] * 2 + 1], axis=1)
    objective, predictions = _reference(padded, labels, train[0])
    fit = _fit(padded, labels, train, 3)
    assert abs(float(_objectives(fit, padded, labels, train)[0]) - objective) < 1e-6
    assert np.mean(fit.predictions()[0].numpy() == predictions) > 0.998
    assert bool(torch.isfinite(fit.coefficients).all())


def test_a_feature_constant_in_the_training_rows_only_is_ignored() -> None:
    features, labels = _states(400, 6, 3, 0.0)
    train = np.arange(400)[None] < 300
    features[:300, 2] = 1.5
    objective, predictions = _reference(features, labels, train[0])
    fit = _fit(features, labels, train, 3)
    assert abs(float(_objectives(fit, features, labels, train)[0]) - objective) < 1e-6
    assert np.mean(fit.predictions()[0].numpy() == predictions) > 0.995


def test_fewer_rows_than_features() -> None:
    features, labels = _states(60, 120, 3, 0.5)
    train = np.arange(60)[None] < 40
    objective, _ = _reference(features, labels, train[0])
    fit = _fit(features, labels, train, 3)
    assert abs(float(_objectives(fit, features, labels, train)[0]) - objective) < 1e-6


def test_a_class_without_training_rows_is_never_predicted() -> None:
    features, labels = _states(500, 8, 4, 0.0)
    train = (labels != 2)[None]
    objective, predictions = _reference(features, labels, train[0])
    fit = _fit(features, labels, train, 4)
    assert 2 not in fit.predictions()
    assert abs(float(_objectives(fit, features, labels, train)[0]) - objective) < 1e-6
    assert np.mean(fit.predictions()[0].numpy() == predictions) > 0.995


def test_one_class_gives_that_class() -> None:
    features, labels = _states(100, 4, 3, 0.0)
    train = (labels == 1)[None]
    fit = _fit(features, labels, train, 3)
    assert bool((fit.predictions() == 1).all())
    assert bool(torch.isfinite(_objectives(fit, features, labels, train)).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.nan}, "NaN"),
        ({"features": np.inf}, "infinity"),
        ({"labels": 3}, "labels"),
        ({"train": False}, "no training row"),
        ({"inverse_penalty": 0.0}, "positive"),
    ],
)
def test_bad_input_is_named(change: dict[str, float], message: str) -> None:
    features, labels = _states(50, 4, 3, 0.0)
    train = np.ones((1, 50), dtype=bool)
    features[0, 0] = change.get("features", 0.0)
    labels[0] = change.get("labels", 0)
    train[:] = change.get("train", True)
    with pytest.raises(ValueError, match=message):
        _fit(features, labels, train, 3, inverse_penalty=change.get("inverse_penalty", 1.0))


def test_giving_up_is_said(caplog: pytest.LogCaptureFixture) -> None:
    features, labels = _states(500, 16, 4, 0.5)
    fit = fit_logistic(
        torch.from_numpy(features), torch.from_numpy(labels), torch.ones(1, 500, dtype=torch.bool), 4, max_iterations=2
    )
    assert not bool(fit.converged.any())
    assert "stopped after 2 iterations" in caplog.text
