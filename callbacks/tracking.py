"""When the scalars of a training are recorded, and where they go: `metrics.jsonl`, the W&B page, Lightning's loggers.

`metrics.jsonl` is the truth (`analysis.tracking.metrics`), the W&B page a view that lacks nothing after a kill
(`analysis.tracking.wandb_run`); `python -m analysis replay RUN` makes the whole page again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from analysis.report.report import write_report
from analysis.tracking.media import is_of_analyses, media_of
from analysis.tracking.metrics import METRICS_FILE, MetricsFile
from analysis.tracking.wandb_run import Mode, Page, WandbRun, run_identity
from callbacks.step import StepCallback

log = logging.getLogger(__name__)


class Tracker(StepCallback):
    """Writes every logged scalar to `metrics.jsonl`, to W&B, and to the loggers of the trainer, on one axis.

    Scalars of `self.log` are taken from `trainer.callback_metrics` every `every_n_steps` optimizer steps and after each
    validation; analyses hand theirs over through `record`. Put it after the callbacks that record through it.

    Args:
        project: W&B project.
        mode: `auto` goes online if a login is found and offline otherwise (never a prompt); `disabled` keeps only
            `metrics.jsonl`.
        every_n_steps: optimizer steps between two rows of training scalars.
        group: W&B group; post-hoc runs of the same model share it. Defaults to the run's name.
        tags: W&B tags, beside those of size, languages and seed.
        notes: W&B notes; the command that reproduces the run is appended.
        figures: whether figures and tables of the analyses go to W&B and `report.html` is renewed, at every step that
            was measured.
    """

    def __init__(
        self,
        project: str = "babelscope",
        mode: Mode = "auto",
        every_n_steps: int = 10,
        group: str | None = None,
        tags: tuple[str, ...] = (),
        notes: str = "",
        figures: bool = True,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1")
        self.page = Page(project=project, mode=mode, group=group, tags=tuple(tags), notes=notes)
        self.every_n_steps, self.figures = every_n_steps, figures
        self.metrics: MetricsFile | None = None
        """The record of the run while it is open; None on other ranks than the first."""
        self.wandb: WandbRun | None = None
        self.loggers: list[pl.loggers.Logger] = []
        self._lacking: list[pl.loggers.Logger] = []
        """Those that raised, of which nothing more is said."""
        self._rate = 0.0
        """Learning rate of the newest step: when `on_step` comes, the scheduler has set that of the next."""

    # Lightning's hooks ------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.metrics is None:
            self.start(Path(trainer.default_root_dir))
            self.loggers = list(trainer.loggers)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.metrics is not None:
            self.metrics.resume_at(trainer.global_step)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self._rate = float(optimizer.param_groups[0]["lr"])

    def on_step(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            values = {k: v for k, v in scalars_of(trainer.callback_metrics).items() if not k.startswith("val/")}
            values["optim/lr_0"] = self._rate
            self.record("train", values, step, _tokens(module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        values = {k: v for k, v in scalars_of(trainer.callback_metrics).items() if k.startswith("val/")}
        if values:
            self.record("val", values, trainer.global_step, _tokens(pl_module))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.finish(0)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.finish(1)

    # the record itself ------------------------------------------------------------------------------------------------

    def start(self, root: Path) -> None:
        """Open the record of the run in folder `root`: read what is there.

        Raises:
            ValueError: `run.json` or a line of `metrics.jsonl` is broken.
        """
        page = replace(self.page, command=f"python -m train fit --config {root / 'config.yaml'}")
        media = partial(media_of, root / "results") if self.figures else None
        self.wandb = WandbRun(root, page, run_identity(root), media)
        self.metrics = MetricsFile(root / METRICS_FILE, first=self.wandb.sent + 1)

    def record(self, kind: str, values: Mapping[str, float], step: int, tokens: int | None) -> None:
        """Append one row and show it; a no-op on other ranks than the first, and for a row that is there already."""
        if self.metrics is None or self.wandb is None:
            return
        row = self.metrics.add(kind, values, step, tokens)
        if row is None:
            return
        for logger in self.loggers:
            try:
                logger.log_metrics(row["values"], step=step)
            except Exception as error:  # as W&B, a view: `metrics.jsonl` is complete
                if logger not in self._lacking:
                    self._lacking.append(logger)
                    log.warning("%s lacks rows, from step %d on: %s", type(logger).__name__, step, error)
        if self.figures and is_of_analyses(row):
            self._renew_report()
        self.wandb.send(row)

    def _renew_report(self) -> None:
        assert self.wandb is not None
        try:
            write_report([self.wandb.root])
        except Exception as error:  # a figure must not end a training
            log.warning("report.html was not renewed: %s", error)

    def has(self, kind: str, step: int) -> bool:
        """Whether a row of this kind is recorded for this step and `record` would have nothing to compare it with."""
        return self.metrics is not None and self.metrics.has(kind, step)

    def finish(self, exit_code: int) -> None:
        """Close the record; W&B is given what it lacks."""
        if self.wandb is not None:
            self.wandb.finish(exit_code)
        self.metrics = None

    def closing_lines(self) -> list[str]:
        """What `train fit` says at its end: where the page of the run is."""
        location = self.wandb.location if self.wandb is not None else None
        return [] if location is None else [f"W&B:      {location}"]


def scalars_of(metrics: Mapping[str, torch.Tensor | float]) -> dict[str, float]:
    """Plain numbers of Lightning's metrics; `_step`/`_epoch` doubles of the same key are left out."""
    doubles = {key for key in metrics if key.endswith(("_step", "_epoch")) and key.rpartition("_")[0] in metrics}
    return {key: float(value) for key, value in metrics.items() if key not in doubles}


def _tokens(module: pl.LightningModule) -> int | None:
    tokens = getattr(module, "tokens_seen", None)
    return None if tokens is None else int(tokens)
