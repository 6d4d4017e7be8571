"""Other probes than logistic regression: do the conclusions hang on the classifier?

- `fit_ridge`: one-against-all least squares, closed form; `fit_lda`: linear discriminant analysis with shrinkage,
  closed form. No optimiser, hence no refit noise.
- `fit_mlp`: one hidden layer, trained with Adam; what a non-linear reader finds beyond a linear one.
- `online_code`: minimum description length of the labels given the states (Voita & Titov, EMNLP 2020): a language that
  is easy to read off needs few examples, which accuracy does not show.

Shapes:  N rows   D features   P problems   K classes   H hidden units   B rows of a batch
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from analysis.probes.logistic import fit_logistic

CODE_FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the blocks of the online code, as shares of all rows (Voita & Titov 2020, section 3.2.2)."""
FLOOR = 1e-3
"""Share of the uniform code in every prediction, so that no surprise costs infinitely many bits."""
CODE_TOLERANCE = 1e-5
"""Gap in nats at which the regressions of a code stop: moves code lengths by less than 1e-3 of themselves."""


def standardise(features: Tensor, rows: Tensor) -> Tensor:
    """Features (N, D) with mean 0 and variance 1 on the rows (N,) bool; constant features are only centred."""
    mean = features[rows].mean(dim=0)
    scale = (features[rows] - mean).square().mean(dim=0).sqrt()
    constant = scale <= 10 * torch.finfo(features.dtype).eps * mean.abs()
    return (features - mean) / torch.where(constant | (scale == 0), 1.0, scale)


def fit_ridge(features: Tensor, labels: Tensor, train: Tensor, num_classes: int, penalty: float = 1.0) -> Tensor:
    """Scores (P, N, K) of least squares on targets of -1 and 1 (scikit-learn's `RidgeClassifier`, alpha = penalty).

    Args:
        features: (N, D); standardised on each problem's training rows.
        labels: (N,) in [0, K).
        train: (P, N) bool.

    Raises:
        ValueError: a problem without training rows, or features that are not finite.
    """
    _check(features, train)
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
    _check(features, train)
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


def fit_mlp(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    num_classes: int,
    seeds: Sequence[int],
    *,
    hidden: int = 64,
    steps: int = 300,
    batch: int = 256,
    learning_rate: float = 5e-3,
    weight_decay: float = 1e-2,
) -> Tensor:
    """Scores (P, N, K) of a ReLU network with one hidden layer, all problems trained in step.

    Initialisation and order of rows come from each problem's seed alone. Works inside inference mode.

    Args:
        seeds: one a problem.
        steps: optimizer steps, each on `batch` rows; the learning rate rises and falls once (one cycle).

    Raises:
        ValueError: as `fit_ridge`; or not one seed a problem.
    """
    _check(features, train)
    if len(seeds) != len(train):
        raise ValueError(f"{len(train)} problems need as many seeds, got {len(seeds)}")
    device, width = features.device, features.shape[1]
    with torch.inference_mode(False), torch.enable_grad():
        scaled = torch.stack([standardise(features.clone(), rows.clone()) for rows in train])  # (P, N, D)
        truth = labels.to(device).clone()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def draw(*shape: int, scale: float) -> Tensor:
            values = torch.stack([torch.randn(*shape, generator=generator) for generator in generators])
            return (scale * values).to(features).requires_grad_()

        into = draw(width, hidden, scale=math.sqrt(2 / width))
        out = draw(hidden, num_classes, scale=math.sqrt(1 / hidden))
        inner = torch.zeros(len(train), 1, hidden, dtype=features.dtype, device=device, requires_grad=True)
        outer = torch.zeros(len(train), 1, num_classes, dtype=features.dtype, device=device, requires_grad=True)

        def forward(inputs: Tensor) -> Tensor:
            return torch.baddbmm(outer, torch.relu(torch.baddbmm(inner, inputs, into)), out)

        optimizer = torch.optim.AdamW([into, inner, out, outer], lr=learning_rate, weight_decay=weight_decay)
        members = [rows.nonzero().flatten().cpu() for rows in train]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        streams = [
            torch.cat([rows[torch.randperm(len(rows), generator=g)] for _ in range(1 + steps * batch // len(rows))])
            for rows, g in zip(members, generators, strict=True)
        ]
        problem = torch.arange(len(train), device=device)[:, None]
        for step in range(steps):
            rows = torch.stack([stream[step * batch : (step + 1) * batch] for stream in streams]).to(device)  # (P, B)
            logits = forward(scaled[problem, rows])
            # Summed over problems, so that none influences another.
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), truth[rows].flatten(), reduction="sum")
            optimizer.zero_grad()
            (loss / batch).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return forward(scaled)


@dataclass(frozen=True)
class OnlineCode:
    """Length of the labels' code when they are sent one block after the other."""

    bits: float
    num_rows: int
    num_classes: int

    @property
    def uniform_bits(self) -> float:
        return self.num_rows * math.log2(self.num_classes)

    @property
    def compression(self) -> float:
        """Uniform code / this code: 1 if nothing can be read off the states."""
        return self.uniform_bits / self.bits


def online_code(
    features: Tensor, labels: Tensor, num_classes: int, fractions: Sequence[float] = CODE_FRACTIONS
) -> OnlineCode:
    """Code the labels in the order of the rows; the code of each block is a logistic regression on all rows before.

    The first block is sent uniformly: L = t_1 log2 K - sum_i log2 p_i(block i + 1).

    Raises:
        ValueError: fractions that do not rise to 1, no rows, or one class only.
    """
    if not fractions or list(fractions) != sorted(set(fractions)) or fractions[-1] != 1 or fractions[0] <= 0:
        raise ValueError(f"fractions={tuple(fractions)} must rise to 1")
    count = len(labels)
    if count < 2 or num_classes < 2:
        raise ValueError(f"{count} rows of {num_classes} classes: a code needs at least two of both")
    ends = sorted({min(count, max(num_classes, round(fraction * count))) for fraction in fractions})
    bits = ends[0] * math.log2(num_classes)
    # A regression needs no row behind the block that it codes. The many small ones share a solve, the large go alone.
    blocks = list(pairwise(ends))
    small = [block for block in blocks if block[1] <= count / 8]
    for group in [small, *([block] for block in blocks[len(small) :])]:
        if not group:
            continue
        last = group[-1][1]
        place = torch.arange(last, device=features.device)
        before = place[None] < torch.tensor([start for start, _ in group], device=features.device)[:, None]  # (P, rows)
        fit = fit_logistic(features[:last], labels[:last], before, num_classes, tolerance=CODE_TOLERANCE)
        surprise = fit.surprise(labels[:last])
        probability = (1 - FLOOR) * torch.exp2(-surprise.double()) + FLOOR / num_classes
        for own, (start, end) in zip(probability, group, strict=True):
            bits -= float(own[start:end].log2().sum())
    return OnlineCode(bits, count, num_classes)


def _check(features: Tensor, train: Tensor) -> None:
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features hold NaN or infinity")
    if not bool(train.any(dim=1).all()):
        raise ValueError("a problem has no training row")
