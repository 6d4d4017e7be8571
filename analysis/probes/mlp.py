"""A probe with one hidden layer: what a non-linear reader finds beyond a linear one.

Shapes:  N rows   D features   P problems   K classes   H hidden units   B rows of a batch
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


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
        ValueError: features that are not finite, a problem without training rows, or not one seed a problem.
    """
    check_features(features, train)
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


def standardise(features: Tensor, rows: Tensor) -> Tensor:
    """Features (N, D) with mean 0 and variance 1 on the rows (N,) bool; constant features are only centred."""
    mean = features[rows].mean(dim=0)
    scale = (features[rows] - mean).square().mean(dim=0).sqrt()
    constant = scale <= 10 * torch.finfo(features.dtype).eps * mean.abs()
    return (features - mean) / torch.where(constant | (scale == 0), 1.0, scale)


def check_features(features: Tensor, train: Tensor) -> None:
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features hold NaN or infinity")
    if not bool(train.any(dim=1).all()):
        raise ValueError("a problem has no training row")
