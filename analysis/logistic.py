"""L2-regularised multinomial logistic regression: many fits over one set of features, in one batched solver.

A probe is fitted per layer, seed, control task and block of an online code, always on the same token states. All of
these are *problems* over one feature matrix: they differ in the rows that they train on (weights of 0 and 1), in their
labels and in the standardisation that follows from their rows. One matrix product with (problems x classes) columns
serves them all.

The optimum is scikit-learn's (`StandardScaler` fitted on the training rows, then `LogisticRegression(C)`, intercept
not penalised; two classes follow the binomial convention). The way there is L-BFGS (Nocedal & Wright, Numerical
Optimization, 2nd ed., algorithm 7.4) in the eigenbasis of the features' Gram matrix, where the Hessian is nearly
diagonal: its diagonal, kept up to date, is the initial matrix of the two-loop recursion. Since logits are linear in the
parameters, the line search needs no matrix product.

Called by `language_id` and `probes`.

Shapes:  N rows   D features   P problems   K classes   F = D + 1 (features and a constant)
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

HISTORY = 12
"""Pairs of steps and gradient differences that L-BFGS remembers."""
UNDERSHOOT, OVERSHOOT = 0.9, 0.5
"""A step is accepted when its slope lies in [-UNDERSHOOT, OVERSHOOT] x the initial descent."""


@dataclass(frozen=True)
class LogisticFit:
    """Solutions of all problems over one feature matrix, in the coordinates of the features as given."""

    coefficients: Tensor
    """(P, K, D)."""
    intercepts: Tensor
    """(P, K); -inf for a class that has no training row in the problem, so that it is never predicted."""
    logits: Tensor
    """(P, K, N), for every row, trained on or not."""
    objective: Tensor
    """(P,) mean training loss in nats plus the penalty, as scikit-learn states it divided by the number of rows."""
    iterations: Tensor
    """(P,) L-BFGS iterations."""
    converged: Tensor
    """(P,) whether the estimated distance to the optimum fell below the tolerance."""

    def predictions(self) -> Tensor:
        """Most probable class of every row, (P, N)."""
        return self.logits.argmax(dim=1)

    def surprise(self, labels: Tensor) -> Tensor:
        """-log2 of the probability of the labels (N,), (P, N) bits; infinite for a class that was never trained on."""
        chosen = labels.to(self.logits.device).expand(self.logits.shape[0], 1, -1)
        return (self.logits.logsumexp(dim=1) - self.logits.gather(1, chosen)[:, 0]) / math.log(2)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    num_classes: int,
    *,
    inverse_penalty: float = 1.0,
    tolerance: float = 1e-8,
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
    device, dtype = features.device, features.dtype
    num_problems, num_rows = train.shape
    count = train.sum(dim=1)  # (P,)
    weights = train.to(dtype) / count[:, None].to(dtype)  # (P, N), sums to 1
    targets = torch.zeros(num_problems, num_classes, num_rows, dtype=dtype, device=device)
    targets.scatter_(1, labels[:, None], weights[:, None])  # weighted one-hot
    present = targets.amax(dim=2) > 0  # (P, K)
    # scikit-learn fits two classes as one weight vector w = W1 - W0: |w|^2 = 2 (|W0|^2 + |W1|^2) at the optimum.
    penalty = (1 + (present.sum(dim=1) == 2)) / (inverse_penalty * count.double())  # (P,)

    any_train = train.any(dim=0)
    mean = features[any_train].double().mean(dim=0)
    centred = (features.double() - mean).to(dtype)
    scale = centred[any_train].double().square().mean(dim=0).sqrt()
    # Below the resolution of the data's own precision a feature is constant, whatever rounding says.
    constant = scale <= 10 * torch.finfo(dtype).eps * mean.abs() + torch.finfo(dtype).tiny
    scale = torch.where(constant, 1.0, scale)
    centred = torch.where(constant.to(device), 0.0, centred / scale.to(dtype))  # (N, D)

    gram = centred[any_train].T @ centred[any_train] / int(any_train.sum())
    curvature, basis = torch.linalg.eigh(gram.double())
    curvature.clamp_(min=0.0)
    rotated = torch.empty(basis.shape[0] + 1, num_rows, dtype=dtype, device=device)  # (F, N)
    torch.matmul(basis.T.to(dtype), centred.T, out=rotated[:-1])
    rotated[-1] = 1.0

    # A problem standardises on its own rows: the penalty is on W = ratio * (weights of the shared coordinates).
    first = weights @ centred
    ratio = (weights @ centred.square() - first.square()).clamp(min=0.0).double().sqrt()  # (P, D)
    ratio = torch.where(ratio < 1e-5, 1.0, ratio)
    shrink = penalty[:, None, None] * torch.einsum("dj,pd,dk->pjk", basis, ratio.square(), basis)  # (P, D, D)

    with _full_precision():
        solution, iterations, converged = _minimise(
            rotated, weights, targets, present, shrink.to(dtype), curvature.to(dtype), tolerance, max_iterations
        )
    if not bool(converged.all()):
        logger.warning(
            "logistic regression: %d of %d problems stopped after %d iterations above the tolerance %g",
            int((~converged).sum()),
            num_problems,
            max_iterations,
            tolerance,
        )
    logits = torch.matmul(solution, rotated).masked_fill_(~present[:, :, None], -torch.inf)
    shared = solution[:, :, :-1].double()
    loss = (logits.logsumexp(dim=1) - logits.gather(1, labels[:, None])[:, 0]).double()
    mean_loss = torch.where(train, loss, 0.0).sum(dim=1) / count
    objective = mean_loss + 0.5 * torch.einsum("pkd,pde,pke->p", shared, shrink, shared)
    coefficients = (shared @ basis.T) / scale  # (P, K, D)
    intercepts = solution[:, :, -1].double() - coefficients @ mean
    return LogisticFit(
        coefficients=coefficients.to(dtype),
        intercepts=intercepts.masked_fill(~present, -torch.inf).to(dtype),
        logits=logits,
        objective=objective,
        iterations=iterations,
        converged=converged,
    )


@contextmanager
def _full_precision() -> Iterator[None]:
    """True float32 products even where training has asked for TF32 or bfloat16 ones: the gradient decides the end."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
    if not bool(torch.isfinite(features).all()):
        bad = int((~torch.isfinite(features)).any(dim=1).sum())
        raise ValueError(f"{bad} of {features.shape[0]} rows of the features hold NaN or infinity")
    empty = (~train.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"problems {empty} have no training row")
    if inverse_penalty <= 0:
        raise ValueError(f"inverse_penalty (C) must be positive, got {inverse_penalty}")
    return labels.to(features.device, torch.long), train.to(features.device)


def _minimise(
    rotated: Tensor,
    weights: Tensor,
    targets: Tensor,
    present: Tensor,
    shrink: Tensor,
    curvature: Tensor,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """L-BFGS on all problems at once; a finished problem leaves the batch. Returns (P, K, F), (P,), (P,)."""
    num_problems, num_classes = present.shape
    solution = rotated.new_zeros(num_problems, num_classes, rotated.shape[0])
    iterations = torch.full((num_problems,), max_iterations, device=rotated.device)
    converged = torch.zeros(num_problems, dtype=torch.bool, device=rotated.device)
    active = torch.arange(num_problems, device=rotated.device)
    # Only these rows are trained on by anyone; the other rows get their logits at the end.
    rows = weights.amax(dim=0) > 0
    if not bool(rows.all()):
        rotated, weights, targets = rotated[:, rows], weights[:, rows], targets[:, :, rows]
    weights = weights[:, None]  # (P, 1, N)
    hidden = torch.zeros_like(present, dtype=rotated.dtype).masked_fill_(~present, -torch.inf)[:, :, None]
    ridge = shrink.diagonal(dim1=1, dim2=2)  # (P, D)
    point = solution.clone()
    logits = torch.zeros_like(targets)
    probabilities = (logits + hidden).softmax(dim=1)
    history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=HISTORY)

    def gradient_at(point: Tensor, residual: Tensor) -> Tensor:
        gradient = torch.matmul(residual, rotated.T)
        gradient[:, :, :-1] += torch.matmul(point[:, :, :-1], shrink)
        return gradient

    gradient = gradient_at(point, probabilities * weights - targets)
    for iteration in range(max_iterations + 1):
        spread = torch.linalg.vecdot(probabilities * weights, 1 - probabilities)  # (P, K): curvature of each class
        diagonal = torch.empty_like(point)
        diagonal[:, :, :-1] = spread[:, :, None] * curvature + ridge[:, None]
        diagonal[:, :, -1] = spread
        direction = _descent(gradient, diagonal.clamp_(min=1e-12), history)
        slope = _dot(gradient, direction)
        lost = slope > 0  # only by rounding, next to the optimum
        if bool(lost.any()):
            direction = torch.where(lost[:, None, None], -gradient / diagonal, direction)
            slope = _dot(gradient, direction)
        finished = -0.5 * slope <= tolerance
        if bool(finished.any()) or iteration == max_iterations:
            solution[active] = point
            iterations[active[finished]] = iteration
            converged[active[finished]] = True
            keep = ~finished
            if not bool(keep.any()) or iteration == max_iterations:
                break
            active, weights, targets, hidden = active[keep], weights[keep], targets[keep], hidden[keep]
            shrink, ridge, point, logits = shrink[keep], ridge[keep], point[keep], logits[keep]
            gradient, direction, slope = gradient[keep], direction[keep], slope[keep]
            history = deque(((s[keep], y[keep], r[keep]) for s, y, r in history), maxlen=HISTORY)
        change = torch.matmul(direction, rotated)  # (P, K, N)
        size, logits, probabilities, residual = _search(
            logits, change, slope, *_ridge_slope(point, direction, shrink), weights, targets, hidden
        )
        step = size[:, None, None] * direction
        point = point + step
        previous, gradient = gradient, gradient_at(point, residual)
        difference = gradient - previous
        product = _dot(step, difference)
        # A pair without positive curvature (rounding) is disarmed: its coefficients become zero.
        inverse = torch.where(product > 0, 1 / product.clamp(min=1e-30), 0.0)
        history.append((step, difference, inverse))
    return solution, iterations, converged


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each problem, (P,)."""
    return torch.linalg.vecdot(left.flatten(1), right.flatten(1))


def _descent(gradient: Tensor, diagonal: Tensor, history: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion with the initial inverse Hessian gamma / diagonal."""
    direction = gradient
    coefficients = []
    for step, difference, inverse in reversed(history):
        coefficient = inverse * _dot(step, direction)
        coefficients.append(coefficient)
        direction = direction - coefficient[:, None, None] * difference
    direction = direction / diagonal
    if history:
        step, difference, inverse = history[-1]
        curved = _dot(difference, difference / diagonal) * inverse
        direction = direction / torch.where(curved > 0, curved, 1.0)[:, None, None]
    for (step, difference, inverse), coefficient in zip(history, reversed(coefficients), strict=True):
        back = inverse * _dot(difference, direction)
        direction = direction + (coefficient - back)[:, None, None] * step
    return -direction


def _ridge_slope(point: Tensor, direction: Tensor, shrink: Tensor) -> tuple[Tensor, Tensor]:
    """The penalty's slope along the direction is offset + size x rise, (P,) each."""
    pulled = torch.matmul(direction[:, :, :-1], shrink)
    return _dot(point[:, :, :-1], pulled), _dot(direction[:, :, :-1], pulled)


def _search(
    logits: Tensor,
    change: Tensor,
    slope: Tensor,
    offset: Tensor,
    rise: Tensor,
    weights: Tensor,
    targets: Tensor,
    hidden: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find step sizes by the slope alone (the objective is convex), which float32 resolves far better than its value.

    Returns size (P,) and, there, logits, probabilities and weighted residual (P, K, N).
    """
    size = torch.ones_like(slope)
    low, low_slope = torch.zeros_like(slope), slope
    high = torch.full_like(slope, torch.inf)
    for _ in range(20):
        moved = torch.addcmul(logits, size[:, None, None], change)
        probabilities = (moved + hidden).softmax(dim=1)
        residual = torch.addcmul(-targets, probabilities, weights)
        there = _dot(residual, change) + offset + size * rise
        short, far = there < UNDERSHOOT * slope, there > -OVERSHOOT * slope
        if not bool((short | far).any()):
            break
        # Secant step inside the bracket; without an upper end, double.
        guess = low + (size - low) * low_slope / (low_slope - there)
        high = torch.where(far, size, high)
        low, low_slope = torch.where(short, size, low), torch.where(short, there, low_slope)
        width = torch.where(high.isinf(), 0.0, high - low)
        inside = torch.minimum(torch.maximum(guess, low + 0.1 * width), high - 0.1 * width)
        longer = torch.where(high.isinf(), 2 * size, inside)
        size = torch.where(short | far, torch.where(longer.isfinite(), longer, 0.5 * size), size)
    return size, moved, probabilities, residual
