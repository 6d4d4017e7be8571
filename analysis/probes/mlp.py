"""A probe with one hidden layer: what a non-linear reader finds beyond a linear one.

Shapes:  N rows of a problem   D features   P problems   K classes   H hidden units   B rows of a batch
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def fit_mlp(
    features: Sequence[Tensor],
    labels: Sequence[Tensor],
    train: Sequence[Tensor],
    num_classes: int,
    seeds: Sequence[int],
    *,
    hidden: int = 64,
    steps: int = 300,
    batch: int = 256,
    learning_rate: float = 5e-3,
    weight_decay: float = 1e-2,
) -> list[Tensor]:
    """Scores (N, K) of a ReLU network with one hidden layer for each problem, all problems trained in step.

    Initialisation and order of rows come from each problem's seed alone. Works inside inference mode.

    Args:
        features, labels, train: (N, D), (N,) and (N,) bool of each problem, which may differ in N; all are computed on
            the device of the first.
        seeds: one a problem.
        steps: optimizer steps, each on `batch` rows; the learning rate rises and falls once (one cycle).

    Raises:
        ValueError: features that are not finite, a problem without training rows, or not one seed a problem.
    """
    if len(seeds) != len(train):
        raise ValueError(f"{len(train)} problems need as many seeds, got {len(seeds)}")
    device, dtype, width = features[0].device, features[0].dtype, features[0].shape[1]
    with torch.inference_mode(False), torch.enable_grad():
        scaled = [
            _standardise(one.to(device, copy=True), rows.clone()) for one, rows in zip(features, train, strict=True)
        ]
        inputs, truth = torch.cat(scaled), torch.cat([one.to(device) for one in labels])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def draw(*shape: int, scale: float) -> Tensor:
            values = torch.stack([torch.randn(*shape, generator=generator) for generator in generators])
            return (scale * values).to(device, dtype).requires_grad_()

        into = draw(width, hidden, scale=math.sqrt(2 / width))
        out = draw(hidden, num_classes, scale=math.sqrt(1 / hidden))
        inner = torch.zeros(len(train), 1, hidden, dtype=dtype, device=device, requires_grad=True)
        outer = torch.zeros(len(train), 1, num_classes, dtype=dtype, device=device, requires_grad=True)
        optimizer = torch.optim.AdamW([into, inner, out, outer], lr=learning_rate, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        order, first = [], 0
        for rows, generator in zip(train, generators, strict=True):
            members = rows.nonzero().flatten().cpu()
            rounds = 1 + steps * batch // len(members)
            drawn = [members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)]
            order.append(torch.cat(drawn)[: steps * batch].view(steps, batch) + first)
            first += len(rows)
        for rows in torch.stack(order, dim=1).to(device):  # (P, B)
            hiddens = torch.relu(torch.baddbmm(inner, inputs[rows], into))
            logits = torch.baddbmm(outer, hiddens, out)
            # Summed over problems, so that none influences another.
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), truth[rows].flatten(), reduction="sum")
            optimizer.zero_grad()
            (loss / batch).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return [
                torch.relu(one @ into[place] + inner[place]) @ out[place] + outer[place]
                for place, one in enumerate(scaled)
            ]


def _standardise(features: Tensor, rows: Tensor) -> Tensor:
    """Features (N, D) with mean 0 and variance 1 on the rows (N,) bool; constant features are only centred."""
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features hold NaN or infinity")
    if not bool(rows.any()):
        raise ValueError("a problem has no training row")
    mean = features[rows].mean(dim=0)
    scale = (features[rows] - mean).square().mean(dim=0).sqrt()
    constant = scale <= 10 * torch.finfo(features.dtype).eps * mean.abs()
    return (features - mean) / torch.where(constant | (scale == 0), 1.0, scale)
