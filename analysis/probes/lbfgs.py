"""Batched L-BFGS for multinomial logistic regression: the way to the optimum, see `logistic` for what is minimised.

L-BFGS (Nocedal & Wright, Numerical Optimization, 2nd ed., algorithm 7.4) starts its recursion from an approximate
Hessian: at first the product of the classes' mean covariance, kept up to date, and the features' Gram matrix, which is
exact at zero. States of trained networks defeat it: different classes are uncertain on different rows. Problems that it
leaves far from the end get the full Hessian of a sample of rows, factored once for all problems with the same labels,
which takes a quarter of the iterations. Since logits are linear in the parameters, the line search needs no matrix
product.

Shapes:  N rows   D features   P problems   K classes   F = D + 1 (features and a constant)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

HISTORY = 8
"""Pairs of steps and gradient differences that L-BFGS remembers."""
FLAT = 0.3
"""A step is accepted when the slope there is at most this share of the initial one."""
PATIENCE = 12
"""Iterations with the product, at least, before the Hessian of a sample of rows is formed."""
RATE = 4
"""Floating-point operations of a Hessian, large products, that take the time of one of an iteration, thin products."""
LARGEST_HESSIAN = 10_000
"""Parameters (K x F) above which it is not: 400 MB in float32."""
SAMPLED_ROWS = 1500, 4
"""Rows of the sample: at least the first, and the second for every feature."""
STRICTER = 0.3
"""Factor on the tolerance while the product is the model: where it is poor, it underestimates the gap."""

Operator = Callable[[Tensor], Tensor]


def minimise(
    rotated: Tensor,
    weights: Tensor,
    targets: Tensor,
    present: Tensor,
    shrink: Tensor,
    curvature: Tensor,
    tolerance: float,
    max_iterations: int,
    task: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """L-BFGS on all problems at once; a finished problem leaves the batch. Returns (P, K, F), (P,), (P,)."""
    num_problems, num_classes = present.shape
    solution = rotated.new_zeros(num_problems, num_classes, rotated.shape[0])
    iterations = torch.full((num_problems,), max_iterations, device=rotated.device)
    converged = torch.zeros(num_problems, dtype=torch.bool, device=rotated.device)
    active = torch.arange(num_problems, device=rotated.device)
    weights = weights[:, None]  # (P, 1, N)
    hidden = None
    if not bool(present.all()):
        hidden = torch.zeros_like(present, dtype=rotated.dtype).masked_fill_(~present, -torch.inf)[:, :, None]
    ridge = shrink.diagonal(dim1=1, dim2=2)  # (P, D)
    point = solution.clone()
    logits = torch.zeros_like(targets)
    probabilities = _softmax(logits, hidden)
    history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=HISTORY)
    factors: dict[int, Tensor] = {}
    gap = torch.ones_like(shrink[:, 0, 0])  # nats, about, at the start
    stop = torch.full_like(gap, tolerance * STRICTER)
    patience = _patience(weights.shape[2], num_classes, rotated.shape[0], num_problems, len(torch.unique(task)))

    def gradient_at(point: Tensor, residual: Tensor) -> Tensor:
        gradient = torch.matmul(residual, rotated.T)
        gradient[:, :, :-1] += torch.matmul(point[:, :, :-1], shrink)
        return gradient

    gradient = gradient_at(point, probabilities * weights - targets)
    for iteration in range(max_iterations + 1):
        if patience is not None and iteration and iteration % patience == 0:
            # At its pace so far it would take half as many iterations again, or more.
            slow = set(task[gap > tolerance ** (iteration / (iteration + patience / 2))].tolist())
            for name in slow - factors.keys():
                number = task.tolist().index(name)
                factors[name] = _hessian_factor(rotated, probabilities[number], weights[number, 0], shrink[number])
                stop[task == name] = tolerance
        if iteration & (iteration - 1) == 0:  # 0, 1, 2, 4, 8, ...: the classes' covariance settles
            spread, basis = _class_spread(probabilities, weights)
        solve = _solver(factors, task, spread, basis, curvature, ridge)
        direction = _descent(gradient, solve, history)
        slope = _dot(gradient, direction)
        lost = slope > 0  # only by rounding, next to the optimum
        if bool(lost.any()):
            direction = torch.where(lost[:, None, None], -solve(gradient), direction)
            slope = _dot(gradient, direction)
        gap = -0.5 * slope
        finished = gap <= stop
        if bool(finished.any()) or iteration == max_iterations:
            solution[active] = point
            iterations[active[finished]] = iteration
            converged[active[finished]] = True
            keep = ~finished
            if not bool(keep.any()) or iteration == max_iterations:
                break
            active, weights, targets = active[keep], weights[keep], targets[keep]
            hidden = None if hidden is None else hidden[keep]
            shrink, ridge, point, logits = shrink[keep], ridge[keep], point[keep], logits[keep]
            gradient, direction, slope, task = gradient[keep], direction[keep], slope[keep], task[keep]
            gap, stop, spread, basis = gap[keep], stop[keep], spread[keep], basis[keep]
            history = deque(((s[keep], y[keep], r[keep]) for s, y, r in history), maxlen=HISTORY)
        change = torch.matmul(direction, rotated)  # (P, K, N)
        size, logits, probabilities, residual = _search(
            logits, change, slope, *_ridge_slope(point, direction, shrink), weights, targets, hidden
        )
        step = size[:, None, None] * direction
        point = point + step
        previous, gradient = gradient, gradient_at(point, residual)
        difference = gradient - previous
        product = _dot(step, difference)[:, None]
        # A pair without positive curvature (rounding) is disarmed: its coefficients become zero.
        inverse = torch.where(product > 0, 1 / product.clamp(min=1e-30), 0.0)
        history.append((step.flatten(1), difference.flatten(1), inverse))
    return solution, iterations, converged


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each problem, (P,)."""
    product: Tensor = torch.linalg.vecdot(left.flatten(1), right.flatten(1))
    return product


def _softmax(logits: Tensor, hidden: Tensor | None) -> Tensor:
    """Probabilities (P, K, N); `hidden` (P, K, 1) is -inf for classes that a problem has no row of."""
    return (logits if hidden is None else logits + hidden).softmax(dim=1)


def _class_spread(probabilities: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (P, K) and eigenvectors (P, K, K) of the classes' mean covariance."""
    weighted = probabilities * weights
    covariance = torch.diag_embed(weighted.sum(dim=2)) - torch.matmul(weighted, probabilities.mT)
    spread, basis = torch.linalg.eigh(covariance)
    # The same shift of all classes has no spread.
    return spread.clamp(min=0) + 1e-5 * spread.mean(dim=1, keepdim=True), basis


def _solver(
    factors: dict[int, Tensor], task: Tensor, spread: Tensor, basis: Tensor, curvature: Tensor, ridge: Tensor
) -> Operator:
    """Inverse of the model of the Hessian: a task's factor if it has one, else class covariance x feature variance."""
    names = set(task.tolist())
    product = None
    if names - factors.keys():
        product = torch.cat([spread[:, :, None] * curvature + ridge[:, None], spread[:, :, None]], dim=2)
        product.clamp_(min=1e-12)

    def solve(vector: Tensor) -> Tensor:
        found = torch.empty_like(vector) if product is None else basis @ (basis.mT @ vector / product)
        for name in names & factors.keys():
            members = task == name
            # Two triangular solves: torch.cholesky_solve copies the whole factor at every call.
            half = torch.linalg.solve_triangular(factors[name], vector[members].flatten(1).T, upper=False)
            whole = torch.linalg.solve_triangular(factors[name].mT, half, upper=True)
            found[members] = whole.T.reshape(vector[members].shape)
        return found

    return solve


def _sample_size(width: int) -> int:
    return max(SAMPLED_ROWS[0], SAMPLED_ROWS[1] * width)


def _patience(num_rows: int, num_classes: int, width: int, num_problems: int, num_tasks: int) -> int | None:
    """The iteration at which as much has been spent on iterations as the Hessians cost, None if they are too large."""
    size = num_classes * width
    if size > LARGEST_HESSIAN:
        return None
    sampled = min(num_rows, _sample_size(width))
    hessian = num_tasks * (size**2 * sampled + size**3 / 3)
    return max(PATIENCE, round(hessian / (RATE * 4 * num_rows * size * num_problems)))


def _hessian_factor(rotated: Tensor, probabilities: Tensor, weights: Tensor, shrink: Tensor) -> Tensor:
    """Cholesky factor (K * F, K * F) of the Hessian of one problem, from (K, N) and (N,), on a sample of its rows.

    Rows are taken in proportion to the spread of their classes, which is all that a row gives to the Hessian, mixed
    with equal shares, and weighted by its inverse.
    """
    (num_classes, num_rows), width = probabilities.shape, rotated.shape[0]
    if num_rows > _sample_size(width):
        spread = torch.linalg.vecdot(probabilities, 1 - probabilities, dim=0)
        share = weights * (spread + torch.dot(weights, spread) + 1e-12)
        reach = share.cumsum(dim=0)
        places = torch.arange(0.5, _sample_size(width), device=rotated.device) / _sample_size(width) * reach[-1]
        rows = torch.searchsorted(reach, places.to(reach.dtype)).clamp_(max=num_rows - 1)
        rotated, probabilities = rotated[:, rows], probabilities[:, rows]
        weights = weights[rows] * reach[-1] / (share[rows] * len(rows))
    inputs = rotated * weights.sqrt()  # (F, n)
    hessian = rotated.new_empty(num_classes, width, num_classes, width)
    for k in range(num_classes):
        # Row k of blocks: p_k (1[k = l] - p_l), for l >= k; the rest by symmetry.
        part = -probabilities[k] * probabilities[k:]
        part[0] += probabilities[k]
        blocks = torch.matmul(inputs * part[:, None], inputs.T)  # (K - k, F, F)
        hessian[k, :, k:] = blocks.transpose(0, 1)
        hessian[k:, :, k] = blocks
        hessian[k, :-1, k, :-1] += shrink
    flat = hessian.view(num_classes * width, num_classes * width)
    # The same shift of all intercepts changes nothing: without this the matrix is singular.
    size = float(flat.diagonal().mean())
    flat.diagonal().add_(1e-5 * size)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(flat)
    while int(failed) and math.isfinite(size):  # of what is not finite no multiple of the identity helps
        flat.diagonal().add_(1e-2 * size)
        factor, failed = torch.linalg.cholesky_ex(flat)
    return factor


def _descent(gradient: Tensor, solve: Operator, history: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion from the initial inverse Hessian `solve`, scaled by the newest pair."""
    direction = gradient.flatten(1)
    coefficients = []
    for step, difference, inverse in reversed(history):
        coefficient = inverse * (step * direction).sum(dim=1, keepdim=True)
        coefficients.append(coefficient)
        direction = torch.addcmul(direction, coefficient, difference, value=-1)
    direction = solve(direction.view_as(gradient)).flatten(1)
    if history:
        _, difference, inverse = history[-1]
        curved = _dot(difference, solve(difference.view_as(gradient)))[:, None] * inverse
        direction = direction / torch.where(curved > 0, curved, 1.0)
    for (step, difference, inverse), coefficient in zip(history, reversed(coefficients), strict=True):
        coefficient = coefficient - inverse * (difference * direction).sum(dim=1, keepdim=True)
        direction = torch.addcmul(direction, coefficient, step)
    return -direction.view_as(gradient)


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
    hidden: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find step sizes by the slope alone (the objective is convex), which float32 resolves far better than its value.

    Returns size (P,) and, there, logits, probabilities and weighted residual (P, K, N).
    """
    size = torch.ones_like(slope)
    low, low_slope = torch.zeros_like(slope), slope
    high = torch.full_like(slope, torch.inf)
    negative = -targets
    for _ in range(20):
        moved = torch.addcmul(logits, size[:, None, None], change)
        probabilities = _softmax(moved, hidden)
        residual = torch.addcmul(negative, probabilities, weights)
        there = _dot(residual, change) + offset + size * rise
        short, far = there < FLAT * slope, there > -FLAT * slope
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
