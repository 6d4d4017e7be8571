"""One line that says where a training is: step, tokens, loss, speed, and when it will be done with its analyses.

    step 128 of 640   196,608 tokens   loss 5.62   7,480 tokens/s   4 min left

On a terminal it is a bar that stays in place; elsewhere (a log file, a scheduler) a line of the log once a minute. What
is logged meanwhile goes above the bar. Callbacks that take long at some steps say so by `seconds`, the time they have
taken, and `seconds_to_come(step, max_steps)`.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

LOG_EVERY = 60.0
"""Seconds between two lines where there is no terminal."""


class TrainingBar(ProgressBar):
    """The bar of `train fit`; nothing is shown on other ranks than the first, nor after `disable`."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm | None = None
        self._open = ExitStack()
        self._first_step, self._started, self._already, self._logged = 0, 0.0, 0.0, 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._enabled and trainer.is_global_zero and sys.stderr.isatty():
            width, height = shutil.get_terminal_size((100, 24))  # a terminal of no size, as of `script`, counts as this
            bar = tqdm(total=trainer.max_steps, bar_format="{desc}   {bar:20}", ncols=width, nrows=height)
            self._bar = self._open.enter_context(bar)
            self._open.enter_context(logging_redirect_tqdm())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first_step, self._started = trainer.global_step, time.monotonic()
        self._already = _seconds_of_callbacks(trainer)
        self._logged = self._started

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        last = trainer.global_step >= trainer.max_steps
        if not self._enabled or (self._bar is None and not last and time.monotonic() - self._logged < LOG_EVERY):
            return
        line = self._line(trainer, pl_module)
        if self._bar is None:
            self._logged = time.monotonic()
            log.info("%s", line)
            return
        self._bar.n = trainer.global_step
        self._bar.set_description_str(line, refresh=False)
        self._bar.update(0)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.refresh()
        self._open.close()
        self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._open.close()
        self._bar = None

    def _line(self, trainer: pl.Trainer, module: pl.LightningModule) -> str:
        step, metrics = trainer.global_step, trainer.callback_metrics
        done = step - self._first_step
        training = time.monotonic() - self._started - (_seconds_of_callbacks(trainer) - self._already)
        to_come = sum(
            callback.seconds_to_come(step, trainer.max_steps)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if hasattr(callback, "seconds_to_come")
        )
        left = math.nan if done < 1 else max(0.0, training) / done * (trainer.max_steps - step) + to_come
        return describe_progress(
            step,
            trainer.max_steps,
            tokens=getattr(module, "tokens_seen", None),
            loss=_number(metrics.get("train/loss")),
            tokens_per_second=_number(metrics.get("perf/tokens_per_second")),
            seconds_left=left,
        )


def describe_progress(
    step: int,
    max_steps: int,
    *,
    tokens: int | None = None,
    loss: float = math.nan,
    tokens_per_second: float = math.nan,
    seconds_left: float = math.nan,
) -> str:
    """The line; what is not known (NaN, None) is left out."""
    parts = [f"step {step:,} of {max_steps:,}"]
    if tokens is not None:
        parts.append(f"{tokens:,} tokens")
    if math.isfinite(loss):
        parts.append(f"loss {loss:.3f}")
    if math.isfinite(tokens_per_second):
        parts.append(f"{tokens_per_second:,.0f} tokens/s")
    if math.isfinite(seconds_left) and step < max_steps:
        parts.append(f"{duration(seconds_left)} left")
    return "   ".join(parts)


def duration(seconds: float) -> str:
    """Two digits are enough: 42 s, 10 min, 2.4 h, 47 h, 3 d 3 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.2g} h" if hours < 48 else f"{round(hours) // 24} d {round(hours) % 24} h"


def _seconds_of_callbacks(trainer: pl.Trainer) -> float:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return sum(callback.seconds for callback in callbacks if hasattr(callback, "seconds_to_come"))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
