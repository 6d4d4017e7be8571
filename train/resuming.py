"""What a stored state of training is told before Lightning takes it up: the options that the run has now.

Lightning and torch restore what the checkpoint says, in silence, also where the options of the run say otherwise. With
the same options nothing here changes a bit.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

TUNED = ("initial_lr", "betas", "eps", "weight_decay")
"""What options of the optimizer decide in a group of parameters, beside its learning rate."""


def follow_options(checkpoint: dict[str, Any], optimizer: Optimizer, scheduler: LambdaLR) -> None:
    """Write the rates, decays and schedule of a fresh optimizer into the stored one, whose step and moments stay."""
    (stored,), (place,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    step = place["last_epoch"]
    rates = [base * shape(step) for base, shape in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    place.update(base_lrs=list(scheduler.base_lrs), _last_lr=rates)
    # Not strict: torch has words of its own for the groups of another optimizer.
    for group, given, rate in zip(stored["param_groups"], optimizer.param_groups, rates, strict=False):
        group.update({name: given[name] for name in TUNED if name in given} | {"lr": rate})


def follow_accumulation(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Count the micro-batches of the stored steps as if each had had `accumulate`.

    Lightning steps where its count is a multiple of that. Left as it was, the first step after a change would take too
    few micro-batches, and those after it some of the next step.
    """
    loops = checkpoint["loops"]["fit_loop"]
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    batches = loops["epoch_loop.batch_progress"]
    for part in ("total", "current"):  # of the run, and of Lightning's epoch: lengthening a finished run begins one
        missing = steps[part]["completed"] * accumulate - batches[part]["ready"]
        batches[part].update({name: count + missing for name, count in batches[part].items()})
