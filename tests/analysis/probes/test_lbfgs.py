"""The solver where its first model of the Hessian is poor: few types of rows, shared unevenly by the classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from analysis.probes import lbfgs
from analysis.probes.logistic import LogisticFit, fit_logistic
from tests.analysis.probes.objectives import objectives


@pytest.fixture(scope="module")
def token_like() -> tuple[np.ndarray, np.ndarray]:
    """Rows are 300 token types with a little context; a type belongs to one, two or three of six languages."""
    generator = np.random.default_rng(0)
    types = generator.normal(size=(300, 40)) * np.arange(1, 41) ** -0.7
    owners = [generator.choice(6, size=1 + number % 3, replace=False) for number in range(300)]
    frequency = 1 / np.arange(1, 301)
    drawn = generator.choice(300, size=3000, p=frequency / frequency.sum())
    labels = np.array([generator.choice(owners[number]) for number in drawn])
    return (types[drawn] + 0.02 * generator.normal(size=(3000, 40))).astype(np.float32), labels


def _fit(data: tuple[np.ndarray, np.ndarray]) -> tuple[LogisticFit, np.ndarray, torch.Tensor]:
    """The fit, the training rows (P, N) and the objectives (P,)."""
    features, labels = data
    train = np.random.default_rng(1).random((2, len(labels))) < 0.8
    given = [torch.from_numpy(one) for one in (features, labels, train)]
    fit = fit_logistic(*given, 6, tolerance=1e-8)
    return fit, train, objectives(fit, *given)


def test_hard_problems_end_at_the_optimum_in_few_iterations(token_like: tuple[np.ndarray, np.ndarray]) -> None:
    fit, train, found = _fit(token_like)
    assert bool(fit.converged.all())
    assert int(fit.iterations.max()) < 60
    features, labels = token_like
    for problem, rows in enumerate(train):
        scaled = StandardScaler().fit_transform(features[rows].astype(np.float64))
        model = LogisticRegression(tol=1e-10, max_iter=50_000).fit(scaled, labels[rows])
        loss = -model.predict_log_proba(scaled)[np.arange(len(scaled)), labels[rows]].mean()
        expected = loss + (model.coef_**2).sum() / (2 * rows.sum())
        assert abs(float(found[problem]) - expected) < 1e-6


def test_the_sampled_hessian_saves_iterations_and_not_accuracy(
    token_like: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_hessian, _, reached = _fit(token_like)
    monkeypatch.setattr(lbfgs, "LARGEST_HESSIAN", 0)
    without, _, reached_without = _fit(token_like)
    assert float(without.iterations.double().mean()) > 1.2 * float(with_hessian.iterations.double().mean())
    assert torch.allclose(reached_without, reached, atol=2e-6)
    assert bool((reached <= reached_without + 1e-7).all())


def test_problems_with_other_labels_get_their_own_hessian(token_like: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = token_like
    many = torch.from_numpy(np.stack([labels, (labels + 1) % 6, np.where(labels < 3, labels, 0)]))
    train = torch.ones(3, len(labels), dtype=torch.bool)
    fit = fit_logistic(torch.from_numpy(features), many, train, 6)
    assert bool(fit.converged.all())
    assert int(fit.iterations.max()) < 60
    found = objectives(fit, torch.from_numpy(features), many, train)
    assert float(found[0]) == pytest.approx(float(found[1]), abs=1e-6)  # names of classes do not matter
    assert torch.equal(fit.predictions()[2].unique(), torch.tensor([0, 1, 2]))


def test_patience_grows_with_the_price_of_a_hessian() -> None:
    cheap = lbfgs._patience(num_rows=15_000, num_classes=10, width=129, num_problems=5, num_tasks=3)
    dear = lbfgs._patience(num_rows=15_000, num_classes=10, width=513, num_problems=5, num_tasks=3)
    assert cheap is not None
    assert dear is not None
    assert lbfgs.PATIENCE <= cheap < dear
    assert lbfgs._patience(num_rows=15_000, num_classes=16, width=4097, num_problems=5, num_tasks=3) is None
