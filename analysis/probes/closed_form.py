"""Probes without an optimiser, hence without refit noise: ridge regression and linear discriminant analysis.

Shapes:  N rows   D features   P problems   K classes
"""

from __future__ import annotations

import torch
from torch import Tensor

from analysis.probes.mlp import check_features, standardise


def fit_ridge(features: Tensor, labels: Tensor, train: Tensor, num_classes: int, penalty: float = 1.0) -> Tensor:
    """Scores (P, N, K) of least squares on targets of -1 and 1 (scikit-learn's `RidgeClassifier`, alpha = penalty).

    Args:
        features: (N, D); standardised on each problem's training rows.
        labels: (N,) in [0, K).
        train: (P, N) bool.

    Raises:
        ValueError: a problem without training rows, or features that are not finite.
    """
    check_features(features, train)
    targets = 2.0 * torch.nn.functional.one_hot(labels, num_classes).to(features) - 1
    scores = []
    for rows in train:
        scaled = standardise(features, rows)
        mean = targets[rows].mean(dim=0)
        gram = (scaled[rows].T @ scaled[rows]).double()
        gram.diagonal().add_(penalty)
        weights = torch.linalg.solve(gram, (scaled[rows].T @ (targets[rows] - mean)).double())
        scores.append(scaled @ weights.to(features) + mean)
    return torch.stack(scores)


def fit_lda(features: Tensor, labels: Tensor, train: Tensor, num_classes: int, shrinkage: float = 0.1) -> Tensor:
    """Scores (P, N, K) of linear discriminant analysis (scikit-learn's with solver lsqr and the same shrinkage).

    Every class's covariance is drawn by `shrinkage` towards the multiple of the identity with the same trace; a class
    without training rows scores -inf.

    Raises:
        ValueError: as `fit_ridge`.
    """
    check_features(features, train)
    width = features.shape[1]
    scores = []
    for rows in train:
        scaled = standardise(features, rows)
        member = torch.nn.functional.one_hot(labels[rows], num_classes).to(features)  # (n, K)
        counts = member.sum(dim=0)
        means = (member.T @ scaled[rows]) / counts.clamp(min=1)[:, None]
        within = scaled[rows] - means[labels[rows]]
        covariance = (within.T @ within).double() / int(rows.sum())
        # Shrinking each class and averaging with the class shares is shrinking the average: the trace is linear.
        size = float(covariance.trace()) / width
        covariance = (1 - shrinkage) * covariance
        covariance.diagonal().add_(shrinkage * size)
        weights = torch.linalg.lstsq(covariance, means.double().T).solution.T.to(features)  # (K, D)
        intercept = -0.5 * (weights * means).sum(dim=1) + torch.log(counts / counts.sum())
        scores.append(scaled @ weights.T + intercept)
    return torch.stack(scores)
