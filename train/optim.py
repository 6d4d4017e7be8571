"""AdamW with the field's parameter groups, and a learning rate that warms up and decays along a cosine.

Defaults follow the recipe of METHOD-like small runs: AdamW (0.9, 0.95) with weight decay 0.1 (Brown et al. 2020,
"Language Models are Few-Shot Learners", appendix B), a linear warm-up and a cosine to 10 % of the peak (Loshchilov &
Hutter 2017, "SGDR"; Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", figure A1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the weights are updated."""

    lr: float = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    warmup_steps: int = 2000
    """Optimizer steps over which the learning rate rises linearly from 0 to its peak."""
    floor: float = 0.1
    """Learning rate at the last step, as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's running mean of gradients and of squared gradients."""
    eps: float = 1e-8
    """Added to the denominator of the update."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; biases and LayerNorm parameters have none."""
    decay_embeddings: bool = True
    """Whether the embedding matrix (which is also the head) decays like the other matrices."""

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be a finite number above 0")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps is {self.warmup_steps}; it must be 0 or more")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"optimizer.floor is {self.floor}; it is a share of the peak, between 0 and 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas is {list(self.betas)}; both must be in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optimizer.weight_decay is {self.weight_decay}; it must be a finite number, 0 or more")


def parameter_groups(model: nn.Module, options: OptimizerOptions) -> list[dict[str, object]]:
    """Two groups: parameters that decay (matrices) and those that do not (biases, LayerNorm, embeddings on request).

    Tied parameters appear once. The order inside a group is that of `model.named_parameters()`, so that optimizer
    states line up between processes and restarts.
    """
    undecayed: set[nn.Parameter] = set()
    for module in model.modules():
        spared_embedding = isinstance(module, nn.Embedding) and not options.decay_embeddings
        if isinstance(module, nn.LayerNorm) or spared_embedding:
            undecayed.update(module.parameters(recurse=False))
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for _, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        (no_decay if parameter in undecayed or parameter.ndim < 2 else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": options.weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, options: OptimizerOptions) -> AdamW:
    """AdamW over `parameter_groups`, with torch's fused kernel where every parameter lies on a device that has one."""
    devices = {parameter.device.type for parameter in model.parameters()}
    dtypes = {parameter.dtype for parameter in model.parameters()}
    fused = devices <= {"cpu", "cuda"} and all(dtype.is_floating_point for dtype in dtypes)
    return AdamW(
        parameter_groups(model, options),
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=fused,
    )


def learning_rate_factor(step: int, *, warmup_steps: int, max_steps: int, floor: float) -> float:
    """Share of the peak learning rate that optimizer step `step` (from 0) uses.

    (step + 1) / warmup_steps while warming up, then floor + (1 - floor) (1 + cos(pi t)) / 2 with t running from 0 at
    the end of the warm-up to 1 at the last step; the floor from there on.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps + 1) / max(1, max_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def build_scheduler(optimizer: torch.optim.Optimizer, options: OptimizerOptions, max_steps: int) -> LambdaLR:
    """The learning-rate schedule, to be stepped once per optimizer step.

    Raises:
        ValueError: the warm-up is not shorter than the run.
    """
    if options.warmup_steps >= max_steps:
        raise ValueError(
            f"optimizer.warmup_steps is {options.warmup_steps} but the run has only {max_steps} steps; "
            "lower it or raise trainer.max_steps"
        )

    def factor(step: int) -> float:
        return learning_rate_factor(step, warmup_steps=options.warmup_steps, max_steps=max_steps, floor=options.floor)

    return LambdaLR(optimizer, factor)
