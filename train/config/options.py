"""What can be refused from the configuration alone, before anything is made: one line that names the option."""

from __future__ import annotations

import math
import os
import re
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning.strategies import Strategy
from transformers import XGLMConfig

from train.config.memory import Memory, estimate_memory
from train.data.batches import micro_batch_size
from train.flops import count_parameters
from train.model.xglm import build_config
from train.optim import OptimizerOptions, decay_steps

SIZES = ("vocab_size", "d_model", "num_layers", "attention_heads", "ffn_dim", "max_position_embeddings", "dropout")
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")
SHARDED_STRATEGIES = ("fsdp", "deepspeed", "modelparallel")
WHY_WHOLE = "snapshots and live analyses need the whole model on every rank, and it fits one device; use ddp or auto"
MAX_SEED = 2**32 - 1


def model_config(model: Namespace) -> XGLMConfig:
    """The network that the `model` section describes.

    Raises:
        ValueError: sizes that are not positive or do not divide.
    """
    return build_config(**{name: model[name] for name in SIZES})


def check_options(run: Namespace) -> None:
    """Refuse values of the `trainer`, `model` and `data` sections that no training can have.

    Raises:
        ValueError: names the option, the value and what is allowed.
    """
    trainer, data = run.trainer, run.data
    check_seed("seed_everything", run.seed_everything)
    check_seed("data.seed", data.seed)
    _check_devices(trainer)
    _refuse_sharded(trainer.strategy)
    if trainer.precision is not None and str(trainer.precision) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision is {trainer.precision}; use bf16-mixed or 32-true (loss scaling hides skipped steps, "
            "and weights of 16 bits lose small updates), or null for what the device computes in"
        )
    if trainer.max_steps < 1:
        raise ValueError(
            f"trainer.max_steps is {trainer.max_steps}; set it, the length of a run is counted in optimizer steps"
        )
    limit = trainer.limit_train_batches
    for name, given in (
        ("fast_dev_run", trainer.fast_dev_run),
        ("overfit_batches", trainer.overfit_batches),
        ("limit_train_batches", limit is not None and (limit != 1 or isinstance(limit, int))),
    ):
        if given:
            raise ValueError(
                f"trainer.{name} is {trainer[name]}, but a batch follows from the step alone; for a trial give "
                "trainer.max_steps and a trainer.default_root_dir of its own"
            )
    if trainer.max_time is not None or (trainer.max_epochs is not None and trainer.max_epochs >= 0):
        name = "max_epochs" if trainer.max_time is None else "max_time"
        raise ValueError(
            f"trainer.{name} is {trainer[name]}, but a run is complete after trainer.max_steps alone; leave it out (a "
            "signal stops a run so that it can go on, see ResumeCheckpoint)"
        )
    if trainer.accumulate_grad_batches < 1:
        raise ValueError(f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}; use at least 1")
    clip = trainer.gradient_clip_val
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        raise ValueError(f"trainer.gradient_clip_val is {clip}; use a norm above 0, or null for no clipping")
    interval = trainer.val_check_interval
    if (isinstance(interval, float) and not 0 < interval <= 1) or (isinstance(interval, int) and interval < 1):
        raise ValueError(
            f"trainer.val_check_interval is {interval}; use a number of micro-batches of at least 1 (and "
            "trainer.limit_val_batches 0 for no validation)"
        )
    micro_batches = trainer.max_steps * trainer.accumulate_grad_batches
    validates = trainer.limit_val_batches != 0 and trainer.check_val_every_n_epoch is not None
    if validates and isinstance(interval, int) and interval > micro_batches:
        raise ValueError(
            f"trainer.val_check_interval is {interval}, but the run has {micro_batches} micro-batches "
            "(trainer.max_steps x accumulate_grad_batches); lower it, or set trainer.check_val_every_n_epoch to null"
        )
    if trainer.log_every_n_steps is not None and trainer.log_every_n_steps < 0:
        raise ValueError(f"trainer.log_every_n_steps is {trainer.log_every_n_steps}; use 0 (no logging) or more")
    decay_steps(OptimizerOptions(**run.model.optimizer.as_dict()), trainer.max_steps)
    devices = num_devices(trainer) or 1
    micro_batch(run, devices)
    _check_memory(run, devices)


def num_devices(trainer: Namespace) -> int | None:
    """Devices of all nodes, or None if only another machine can tell (all of its GPUs, where this one has none)."""
    devices = trainer.devices
    if isinstance(devices, list):
        count = len(devices)
    elif str(devices) in ("auto", "-1"):
        count = torch.cuda.device_count() if _on_gpu(trainer) else 1
    else:  # a number, or the numbers of some as in "0,1"
        count = len(devices.split(",")) if "," in str(devices) else int(devices)
    return count * trainer.num_nodes or None


def micro_batch(run: Namespace, devices: int) -> int:
    """Sequences of one forward pass on one device; see `train.data.batches.micro_batch_size`."""
    return micro_batch_size(run.data.batch_size, devices, run.trainer.accumulate_grad_batches)


def step_memory(run: Namespace, devices: int, *, on_gpu: bool) -> Memory:
    """Rough memory of a training step on one of the devices."""
    return estimate_memory(
        model_config(run.model),
        micro_batch_tokens=micro_batch(run, devices) * run.data.block_size,
        block_size=run.data.block_size,
        bf16="bf16" in str(run.trainer.precision),
        checkpointing=run.model.gradient_checkpointing,
        on_gpu=on_gpu,
        optimizer=run.model.optimizer.name,
    )


def check_seed(name: str, seed: Any) -> None:
    if not isinstance(seed, bool) and seed is not None and not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{name} is {seed}; use a whole number from 0 to {MAX_SEED}")


def _check_devices(trainer: Namespace) -> None:
    devices = trainer.devices
    if isinstance(devices, list):
        valid = bool(devices) and all(isinstance(device, int) and device >= 0 for device in devices)
    else:
        valid = bool(re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\d+)+", str(devices)))
    if not valid:
        raise ValueError(
            f"trainer.devices is {devices!r}; use a number of at least 1, a list of device numbers, auto, or -1 for all"
        )
    if trainer.num_nodes < 1:
        raise ValueError(f"trainer.num_nodes is {trainer.num_nodes}; use at least 1")


def _on_gpu(trainer: Namespace) -> bool:
    """Whether training is on GPUs of CUDA; here they may be missing where `describe` runs."""
    return trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and torch.cuda.is_available())


def _refuse_sharded(strategy: str | Namespace | Strategy) -> None:
    """Strategies that spread one model over devices, by name or class, before Lightning starts them."""
    name = strategy if isinstance(strategy, str) else str(getattr(strategy, "class_path", type(strategy).__name__))
    if any(word in name.lower().replace("_", "") for word in SHARDED_STRATEGIES):
        raise ValueError(f"trainer.strategy is {name}: {WHY_WHOLE}")


def _check_memory(run: Namespace, devices: int) -> None:
    """A model or a micro-batch that cannot fit is refused before the machine swaps or the kernel kills."""
    on_gpu = _on_gpu(run.trainer)
    if on_gpu and not torch.cuda.is_available():
        return  # `describe` on a machine without the device
    config, memory = model_config(run.model), step_memory(run, devices, on_gpu=on_gpu)
    if on_gpu:
        device, there = "the GPU", torch.cuda.get_device_properties(0).total_memory
    else:
        device, there = "this machine", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    positions = 4 * config.max_position_embeddings * config.d_model
    fixed = memory.weights + memory.gradients + memory.optimizer + positions
    if fixed > there:
        raise ValueError(
            f"a model of {count_parameters(config).total:,} parameters and {config.max_position_embeddings:,} "
            f"positions needs about {fixed / 1e9:,.0f} GB for weights, gradients and optimizer, but {device} has "
            f"{there / 1e9:,.0f} GB; lower model.d_model, num_layers, ffn_dim, vocab_size or max_position_embeddings"
        )
    if memory.total > 2 * there:  # the estimate of activations is rough
        needed = (memory.total - fixed) / 1e9
        raise ValueError(
            f"a micro-batch of {micro_batch(run, devices):,} sequences needs about {needed:,.0f} GB, but {device} has "
            f"{there / 1e9:,.0f} GB; raise trainer.accumulate_grad_batches or lower data.batch_size"
        )
