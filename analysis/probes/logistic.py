"""L2-regularised multinomial logistic regression: many fits over one set of features, in one batched solver.

A probe is fitted per layer, seed, control task and block of an online code, always on the same token states. All of
these are *problems* over one feature matrix: they differ in the rows that they train on (weights of 0 and 1), in their
labels and in the standardisation that follows from their rows. One matrix product with (problems x classes) columns
serves them all.

The optimum is scikit-learn's (`StandardScaler` fitted on the training rows, then `LogisticRegression(C)`, intercept not
penalised; two classes follow the binomial convention). The way there (`analysis.probes.lbfgs`) works in the eigenbasis
of the features' Gram matrix: outlier dimensions and collinear features, which cost scikit-learn hundreds of iterations,
are gone before it starts.

Shapes:  N rows   D features   P problems   K classes   F = D + 1 (features and a constant)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.probes.lbfgs import minimise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogisticFit:
    """Solutions of all problems over one feature matrix, in the coordinates of the features as given."""

    coefficients: Tensor
    """(P, K, D)."""
    intercepts: Tensor
    """(P, K); -inf for a class that has no training row in the problem, so that it is never predicted."""
    logits: Tensor
    """(P, K, N), for every row, trained on or not."""
    iterations: Tensor
    """(P,) L-BFGS iterations."""
    converged: Tensor
    """(P,) whether the estimated distance to the optimum fell below the tolerance."""

    def predictions(self) -> Tensor:
        """Most probable class of every row, (P, N)."""
        return self.logits.argmax(dim=1)

    def surprise(self, labels: Tensor) -> Tensor:
        """-log2 of the probability of the labels (N,) or (P, N), (P, N) bits; infinite for a class never trained on."""
        chosen = labels.to(self.logits.device).expand(self.logits.shape[0], -1)[:, None]
        return (self.logits.logsumexp(dim=1) - self.logits.gather(1, chosen)[:, 0]) / math.log(2)


@contextmanager
def _full_precision() -> Iterator[None]:
    """True float32 products even where training has asked for TF32 or bfloat16 ones: the gradient decides the end."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@_full_precision()
def fit_logistic(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    num_classes: int,
    *,
    inverse_penalty: float = 1.0,
    tolerance: float = 3e-8,
    max_iterations: int = 500,
) -> LogisticFit:
    """Fit P logistic regressions on the same features.

    Problem p minimises mean_i CE(W z_i + b, y_i) + |W|^2 / (2 C n) over its n training rows, z being the features
    standardised on these rows; a feature that is constant there is only centred.

    Args:
        features: (N, D), float32 or float64; computed in that precision, on that device.
        labels: (N,) or (P, N) classes in [0, K).
        train: (P, N) boolean, the training rows of each problem.
        num_classes: K.
        inverse_penalty: scikit-learn's C.
        tolerance: a problem is finished when its estimated gap to the optimal mean objective is below this.
        max_iterations: after so many the problem is given up with a warning and `converged` False.

    Raises:
        ValueError: values that are not finite, labels out of range, shapes that do not match, or a problem without
            training rows.
    """
    labels, train = _check(features, labels, train, num_classes, inverse_penalty)
    dtype = features.dtype
    count = train.sum(dim=1)  # (P,)
    rows = train.any(dim=0)  # the solver sees these only, M of N
    weights = train[:, rows].to(dtype) / count[:, None].to(dtype)  # (P, M), sums to 1
    targets = weights.new_zeros(len(train), num_classes, weights.shape[1])
    targets.scatter_(1, labels[:, None, rows], weights[:, None])  # weighted one-hot
    present = targets.amax(dim=2) > 0  # (P, K)
    # scikit-learn fits two classes as one weight vector w = W1 - W0: |w|^2 = 2 (|W0|^2 + |W1|^2) at the optimum.
    penalty = (1 + (present.sum(dim=1) == 2)) / (inverse_penalty * count.double())  # (P,)

    # Shared coordinates are near to standardised; what they miss is a constant, which the intercept takes up, and the
    # ratio of scales, which is in the penalty.
    used = features[rows]
    mean = used.mean(dim=0)
    used -= mean
    squares = used.square()
    scale = squares.mean(dim=0).sqrt()
    # Below the resolution of the data's own precision a feature is constant, whatever rounding says.
    constant = scale <= 10 * torch.finfo(dtype).eps * mean.abs() + torch.finfo(dtype).tiny
    inverse_scale = torch.where(constant, 0.0, 1 / scale)
    # A problem standardises on its own rows: the penalty is on W = ratio * (weights of the shared coordinates).
    variance = weights @ squares - (weights @ used).square()
    ratio = variance.clamp_(min=0.0).double().sqrt() * inverse_scale  # (P, D)
    ratio = torch.where(ratio < 1e-5, 1.0, ratio)

    used *= inverse_scale
    curvature, basis = torch.linalg.eigh((used.T @ used / len(used)).double())
    curvature.clamp_(min=0.0)
    rotated = used.new_ones(basis.shape[0] + 1, len(used))  # (F, M)
    torch.matmul(basis.T.to(dtype), used.T, out=rotated[:-1])
    shrink = penalty[:, None, None] * torch.einsum("dj,pd,dk->pjk", basis, ratio.square(), basis)  # (P, D, D)
    task = torch.unique(labels, dim=0, return_inverse=True)[1]  # (P,): problems with the same labels
    solution, iterations, converged = minimise(
        rotated, weights, targets, present, shrink.to(dtype), curvature.to(dtype), tolerance, max_iterations, task
    )
    if not bool(converged.all()):
        logger.warning(
            "logistic regression: %d of %d problems stopped after %d iterations above the tolerance %g",
            int((~converged).sum()),
            len(train),
            max_iterations,
            tolerance,
        )
    shared = solution[:, :, :-1].double()
    coefficients = (shared @ basis.T) * inverse_scale  # (P, K, D)
    logits = torch.matmul(coefficients.to(dtype), (features - mean).T) + solution[:, :, -1:]
    logits.masked_fill_(~present[:, :, None], -torch.inf)
    intercepts = solution[:, :, -1].double() - coefficients @ mean.double()
    return LogisticFit(
        coefficients=coefficients.to(dtype),
        intercepts=intercepts.masked_fill(~present, -torch.inf).to(dtype),
        logits=logits,
        iterations=iterations,
        converged=converged,
    )


def _check(
    features: Tensor, labels: Tensor, train: Tensor, num_classes: int, inverse_penalty: float
) -> tuple[Tensor, Tensor]:
    if features.dim() != 2 or features.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"features must be (N, D) in float32 or float64, not {features.dtype} {tuple(features.shape)}")
    if train.dim() != 2 or train.shape[1] != features.shape[0] or train.dtype != torch.bool:
        raise ValueError(f"train must be boolean (P, {features.shape[0]}), not {train.dtype} {tuple(train.shape)}")
    labels = labels.expand(train.shape[0], -1) if labels.dim() == 1 else labels
    if labels.shape != train.shape:
        raise ValueError(f"labels must be (N,) or {tuple(train.shape)}, not {tuple(labels.shape)}")
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(f"labels must lie in [0, {num_classes}), got [{int(labels.min())}, {int(labels.max())}]")
    if not bool(torch.stack(features.aminmax()).isfinite().all()):  # NaN is the least and the largest
        bad = int((~torch.isfinite(features)).any(dim=1).sum())
        raise ValueError(f"{bad} of {features.shape[0]} rows of the features hold NaN or infinity")
    empty = (~train.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"problems {empty} have no training row")
    if inverse_penalty <= 0:
        raise ValueError(f"inverse_penalty (C) must be positive, got {inverse_penalty}")
    return labels.to(features.device, torch.long), train.to(features.device)
