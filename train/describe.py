"""`python -m train describe --config X`: what a run will be, before anything runs.

Parameters, arithmetic, tokens, snapshots and their disk, memory, hours, and what watching costs, from the configuration
alone: no weights are made and no training text is read, only the texts of the analyses, and a tokenizer that is there
where `model.vocab_size` is not given. Takes the options of `fit`, so `--trainer.max_steps 8192` shows a shorter run.
"""

from __future__ import annotations

import importlib
import math
import sys
import typing
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning.callbacks import Callback
from transformers import XGLMConfig

from babelscope.front import take_option
from train.cli import ParsedRun
from train.config.memory import optimizer_bytes
from train.config.options import micro_batch, model_config, num_devices, step_memory
from train.flops import (
    block_matrix_count,
    count_parameters,
    flops_per_token,
    forward_flops,
    muon_flops,
)
from train.optim import OptimizerOptions, decay_steps
from train.progress import duration

SNAPSHOTS = "callbacks.snapshots.SnapshotWriter"
CHECKPOINTS = "callbacks.resume.ResumeCheckpoint"
RANDOM_NETWORKS = "random networks"
"""Measured once a run."""
READ_AT_ONCE = 64
"""Tokens of a sentence that an analysis reads, about."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SPEEDS = (10_000.0, 50_000.0, 100_000.0, 200_000.0, 400_000.0)
"""Tokens per second for which hours are shown when none are given."""


class RunDescription:
    """A run in figures, those of a parsed `fit` configuration."""

    def __init__(self, run: Namespace) -> None:
        trainer = run.trainer
        self.config = model_config(run.model)
        self.parameters = count_parameters(self.config)
        self.block_size, self.sequences_per_step = run.data.block_size, run.data.batch_size
        self.devices = num_devices(trainer) or 1
        self.micro_batch = micro_batch(run, self.devices)
        self.max_steps = trainer.max_steps
        self.bf16 = "bf16" in str(trainer.precision)
        writers = _callbacks(trainer, SNAPSHOTS)
        others = [entry for entry in trainer.callbacks or [] if entry.class_path != SNAPSHOTS]
        self.snapshot_steps = _scheduled(writers, self.max_steps)
        self.snapshot_bytes = sum(BYTES[entry.init_args.dtype] for entry in writers) * self.parameters.total
        """Of one snapshot."""
        kept = sum(entry.init_args.keep + 1 for entry in _callbacks(trainer, CHECKPOINTS))
        state = optimizer_bytes(self.config, run.model.optimizer.name)
        self.checkpoint_bytes = kept * (4 * self.parameters.total + state)
        """Of all resume checkpoints that are kept, and the one being written."""
        self.measured_steps = _scheduled(others, self.max_steps)
        """Steps at which live analyses run."""
        self.memory = step_memory(run, self.devices, on_gpu=trainer.accelerator in ("gpu", "cuda"))
        self.languages = trained_languages(run.data) or ()
        self.optimizer = OptimizerOptions(**run.model.optimizer.as_dict())

    @property
    def tokens_per_step(self) -> int:
        return self.sequences_per_step * self.block_size

    @property
    def tokens(self) -> int:
        return self.tokens_per_step * self.max_steps

    @property
    def flops_per_token(self) -> int:
        return flops_per_token(self.config, self.block_size)

    def hours(self, tokens_per_second: float) -> float:
        return self.tokens / tokens_per_second / 3600


def trained_languages(data: Namespace) -> tuple[str, ...] | None:
    """Languages of training, clones among them, sorted; None if the text has to be asked which it has."""
    return tuple(sorted({*data.languages, *(data.clones or ())})) if data.languages else None


def format_description(run: RunDescription, speeds: Sequence[float]) -> str:
    """The description as text."""
    count, flops, memory = run.parameters, forward_flops(run.config, run.block_size), run.memory
    c = run.config
    lines = [
        f"model         {c.num_layers} layers, d_model {c.d_model}, {c.attention_heads} heads, FFN {c.ffn_dim}, "
        f"vocabulary {c.vocab_size:,}",
        f"parameters    {count.total:,} = {count.embedding:,} embedding (tied) + {count.body:,} body",
        f"FLOPs/token   {_si(run.flops_per_token)} forward and backward (forward: linear {_si(flops.linear)}, "
        f"attention {_si(flops.attention)}, head {_si(flops.head)})",
    ]
    lines.append("\n              ".join([f"optimizer     {_schedule(run)}", *_muon(run)]))
    if run.languages:
        lines.append(f"languages     {len(run.languages)}: {' '.join(run.languages)}")
    lines += [
        f"tokens/step   {run.tokens_per_step:,} = {run.sequences_per_step} sequences x {run.block_size} tokens "
        f"({run.devices} device{'s' if run.devices > 1 else ''}, micro-batches of {run.micro_batch})",
        f"tokens        {run.tokens:,} in {run.max_steps:,} steps; "
        f"{_si(run.tokens * run.flops_per_token)} FLOPs in all",
        f"snapshots     {len(run.snapshot_steps)} of {_size(run.snapshot_bytes)} = "
        f"{_size(run.snapshot_bytes * len(run.snapshot_steps))}: {_steps(run.snapshot_steps)}",
        f"checkpoints   up to {_size(run.checkpoint_bytes)}: weights and optimizer, those kept and one in writing",
        f"live analyses {len(run.measured_steps)} steps: {_steps(run.measured_steps)}",
        f"memory        about {_size(memory.total)} a device: weights {_size(memory.weights)}"
        f"{' (float32 and bf16)' if run.bf16 else ''}, gradients {_size(memory.gradients)}, optimizer "
        f"{_size(memory.optimizer)}, activations {_size(memory.activations)}, logits {_size(memory.logits)}",
        "time          without analyses and validation:",
        *(f"              {speed:>11,.0f} tokens/s  {duration(3600 * run.hours(speed))}" for speed in speeds),
    ]
    return "\n".join(lines)


def shape_of(config: XGLMConfig) -> dict[str, int]:
    """What a callback needs to know of the model to say what its analyses cost."""
    flops = forward_flops(config, READ_AT_ONCE)
    return {
        "layers": config.num_layers,
        "width": config.d_model,
        "ffn": config.ffn_dim,
        "vocabulary": config.vocab_size,
        "body": flops.linear + flops.attention,
        "head": flops.head,
    }


def format_work(run: RunDescription, work: Mapping[str, float | None], snapshots: int) -> str:
    """What a callback's analyses cost, as text: each of a snapshot, and all of them as a share of the training."""
    training = run.tokens * run.flops_per_token
    lines, known = [], 0.0
    for name, flops in work.items():
        if flops is None:
            lines.append(f"              {name}: not predicted")
            continue
        times = 1 if name == RANDOM_NETWORKS else snapshots
        lines.append(f"              {name}: {_si(flops)}FLOP x {times} = {times * flops / training:.2%} of the run")
        known += times * flops
    return "\n".join([f"watching      {snapshots} snapshots, {known / training:.1%} of the run:", *lines, ""])


def _schedule(run: RunDescription) -> str:
    options = run.optimizer
    fall = decay_steps(options, run.max_steps)
    return (
        f"{'Muon and AdamW' if options.name == 'muon' else 'AdamW'}, learning rate {options.lr:g}: "
        f"{options.warmup_steps:,} steps of warm-up, {f'flat, falling over the last {fall:,}' if fall else 'cosine'}, "
        f"to {options.floor:g} of it"
    )


def _muon(run: RunDescription) -> list[str]:
    if run.optimizer.name != "muon":
        return []
    matrices = block_matrix_count(run.config)
    share = muon_flops(run.config) / (run.tokens_per_step * run.flops_per_token)
    return [
        f"Muon on {_si(matrices)} parameters, AdamW on {_si(run.parameters.total - matrices)}; orthogonalising takes "
        f"{100 * share:.1f} % of a step's FLOPs, on every device anew"
    ]


def main(arguments: Sequence[str]) -> None:
    """Read the options of `fit` and `--tokens_per_second N ...`; write the description to stdout."""
    speeds, rest = take_option("--tokens_per_second", arguments, nargs="+", type=float, default=SPEEDS)
    if any(speed <= 0 for speed in speeds):
        raise ValueError(f"--tokens_per_second {min(speeds):g}: a speed is above 0")
    options = ParsedRun(["fit", *rest]).run
    run = RunDescription(options)
    sys.stdout.write(format_description(run, speeds) + "\n")
    for entry in options.trainer.callbacks or []:
        module, _, name = entry.class_path.rpartition(".")
        if hasattr(getattr(importlib.import_module(module), name), "preflight"):
            callback = _instantiate(entry)
            callback.preflight(languages=trained_languages(options.data), excluded=options.data.exclude or ())
            if hasattr(callback, "work"):
                work = callback.work(**shape_of(run.config))
                sys.stdout.write(format_work(run, work, len(_scheduled([entry], run.max_steps))))


def _instantiate(entry: Namespace) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    return parser.instantiate(parser.parse_object({"callback": entry.as_dict()})).callback


def _callbacks(trainer: Namespace, class_path: str) -> list[Namespace]:
    return [entry for entry in trainer.callbacks or [] if entry.class_path == class_path]


def _scheduled(entries: Sequence[Namespace], max_steps: int) -> tuple[int, ...]:
    """Steps of all `schedule` options of these callbacks; their classes are found by name, as the trainer does."""
    steps: set[int] = set()
    for entry in entries:
        options = entry.get("init_args") or Namespace()
        if "schedule" not in options:
            continue
        module, _, name = entry.class_path.rpartition(".")
        constructor = getattr(importlib.import_module(module), name).__init__
        kinds = typing.get_args(typing.get_type_hints(constructor)["schedule"])
        schedule = next(kind for kind in kinds if kind is not NoneType)
        steps.update(schedule(**options.schedule.as_dict()).up_to(max_steps))
    return tuple(sorted(steps))


def _si(number: float) -> str:
    """1.617e9 -> '1.62 G'."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000 or unit == "E":
            break
        number /= 1000
    return f"{number:.3g} {unit}".rstrip()


def _size(number: float) -> str:
    """Bytes in decimal units."""
    return _si(number) + ("B" if number >= 1000 else " B")


def _steps(steps: Sequence[int], shown: int = 24) -> str:
    """All steps if they are few, else the first and the last."""
    if not steps:
        return "none"
    if len(steps) <= shown:
        return " ".join(f"{step}" for step in steps)
    half = math.ceil(shown / 2)
    return " ".join(map(str, steps[:half])) + " ... " + " ".join(map(str, steps[-half // 2 :]))
