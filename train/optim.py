"""AdamW with the field's parameter groups, or Muon for the matrices of the blocks; and the learning rate's schedule.

Defaults follow the recipe of METHOD-like small runs: AdamW (0.9, 0.95) with weight decay 0.1 (Brown et al. 2020,
"Language Models are Few-Shot Learners", appendix B), a linear warm-up and a cosine to 10 % of the peak (Loshchilov &
Hutter 2017, "SGDR"; Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", figure A1).

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") moves a matrix along its momentum
with all singular values made about 1 by five Newton-Schulz steps. Scaled to the root mean square that AdamW's updates
have, 0.2 of the learning rate (Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv 2502.16982, equation 4), it
takes AdamW's learning rate and weight decay as they are. The other schedule, warm-up, stable, decay (Hu et al. 2024,
"MiniCPM", arXiv 2404.06395), stays at the peak and falls over its last steps by 1 - sqrt(t) (Hägele et al. 2024,
"Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", arXiv 2405.18392): a longer run can start
from any step before the fall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

DECAY_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the weights are updated."""

    name: Literal["adamw", "muon"] = "adamw"
    """`adamw` for all weights; or `muon` for the matrices of the blocks and AdamW for embedding, norms and biases."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """From the peak to the floor along a cosine; or `wsd`: at the peak until the last `decay_share` of the steps."""
    decay_share: float = DECAY_SHARE
    """Share of the run's steps over which `wsd` falls to the floor."""
    lr: float = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    warmup_steps: int = 2000
    """Optimizer steps over which the learning rate rises linearly from 0 to its peak."""
    floor: float = 0.1
    """Learning rate at the last step, as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's running mean of gradients and of squared gradients."""
    eps: float = 1e-8
    """Added to the denominator of AdamW's update."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; biases and LayerNorm parameters have none."""
    decay_embeddings: bool = True
    """Whether the embedding matrix (which is also the head) decays like the other matrices."""

    def __post_init__(self) -> None:
        if not 0 < self.decay_share <= 1:
            raise ValueError(
                f"optimizer.decay_share is {self.decay_share}; it is a share of the steps, above 0, up to 1"
            )
        if self.schedule == "cosine" and self.decay_share != DECAY_SHARE:
            raise ValueError(
                f"optimizer.decay_share is {self.decay_share}, but only the schedule wsd has one; set "
                "optimizer.schedule to wsd or leave decay_share out"
            )
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


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices that Muon moves: all but the embedding, which is also the head, in the order of `model`."""
    embeddings = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and p not in embeddings]


def parameter_groups(
    model: nn.Module, options: OptimizerOptions, left_out: Collection[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Two groups: parameters that decay (matrices) and those that do not (biases, LayerNorm, embeddings on request).

    Tied parameters appear once. The order inside a group is that of `model.named_parameters()`, so that optimizer
    states line up between processes and restarts.
    """
    undecayed: set[nn.Parameter] = set()
    for module in model.modules():
        spared_embedding = isinstance(module, nn.Embedding) and not options.decay_embeddings
        if isinstance(module, nn.LayerNorm) or spared_embedding:
            undecayed.update(module.parameters(recurse=False))
    passed_by = set(left_out)
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for _, parameter in model.named_parameters():
        if parameter.requires_grad and parameter not in passed_by:
            (no_decay if parameter in undecayed or parameter.ndim < 2 else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": options.weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, options: OptimizerOptions) -> Optimizer:
    """AdamW over `parameter_groups`, or Muon over `block_matrices` and AdamW over the rest.

    AdamW has torch's fused kernel where every parameter lies on a device that has one.

    Raises:
        ValueError: Muon for a model without a matrix beside its embedding.
    """
    devices = {parameter.device.type for parameter in model.parameters()}
    dtypes = {parameter.dtype for parameter in model.parameters()}
    fused = devices <= {"cpu", "cuda"} and all(dtype.is_floating_point for dtype in dtypes)
    matrices = block_matrices(model) if options.name == "muon" else []
    adamw = AdamW(
        parameter_groups(model, options, matrices),
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=fused,
    )
    if options.name == "adamw":
        return adamw
    if not matrices:
        raise ValueError("optimizer.name is 'muon', but the model has no matrix beside its embedding; use adamw")
    muon = Muon(matrices, lr=options.lr, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw")
    return MuonWithAdamW(muon, adamw)


class MuonWithAdamW(Optimizer):
    """Muon and AdamW, each over its own parameters, as the one optimizer that Lightning steps, saves and loads.

    Groups (Muon's first) and state are this optimizer's; the parts hold the same objects.
    """

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self.muon, self.adamw = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        count = len(self.muon.param_groups)
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:count], self.param_groups[count:]
        self.muon.state = self.adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by `load_state_dict`, which makes new groups and a new state."""
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss


def learning_rate_factor(step: int, *, warmup_steps: int, max_steps: int, floor: float, decay_steps: int = 0) -> float:
    """Share of the peak learning rate that optimizer step `step` (from 0) uses.

    (step + 1) / warmup_steps while warming up; then, with t running from 0 to 1 at the last step, the cosine
    floor + (1 - floor) (1 + cos(pi t)) / 2 from the end of the warm-up on; or with `decay_steps` the peak, and in the
    last so many steps floor + (1 - floor) (1 - sqrt(t)). The floor after the last step.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    begin = max_steps - decay_steps if decay_steps else warmup_steps
    progress = min(1.0, max(0, step - begin + 1) / max(1, max_steps - begin))
    fall = 1 - math.sqrt(progress) if decay_steps else 0.5 * (1 + math.cos(math.pi * progress))
    return floor + (1 - floor) * fall


def decay_steps(options: OptimizerOptions, max_steps: int) -> int:
    """Steps of the fall of `wsd`, at least one; 0 for a cosine.

    Raises:
        ValueError: warm-up and fall are not shorter than the run.
    """
    steps = max(1, round(options.decay_share * max_steps)) if options.schedule == "wsd" else 0
    if options.warmup_steps + max(1, steps) > max_steps:
        fall = f" and its fall at the end takes {steps} (optimizer.decay_share {options.decay_share})" if steps else ""
        raise ValueError(
            f"optimizer.warmup_steps is {options.warmup_steps}{fall} but the run has only {max_steps} steps; "
            "lower it or raise trainer.max_steps"
        )
    return steps


def build_scheduler(optimizer: Optimizer, options: OptimizerOptions, max_steps: int) -> LambdaLR:
    """The learning-rate schedule, to be stepped once per optimizer step.

    Raises:
        ValueError: see `decay_steps`.
    """
    shape: dict[str, Any] = {"warmup_steps": options.warmup_steps, "max_steps": max_steps, "floor": options.floor}
    shape["decay_steps"] = decay_steps(options, max_steps)
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, **shape))
