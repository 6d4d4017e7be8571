"""The base of callbacks that act once an optimizer step, however many micro-batches the step has."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class StepCallback(Callback):
    """Calls `before_step` and `on_step` once for every optimizer step that is taken, in this order.

    Lightning's hooks come once a micro-batch. A subclass that overrides one of the three hooks below calls it.
    """

    _begun = _done = -1
    """Optimizer steps taken when `before_step` and `on_step` were last called."""

    def before_step(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        """Before the first micro-batch of a step, when all is done that belongs to the `step` steps before it."""

    def on_step(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        """After the last micro-batch of a step; `step` counts this one."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun, self._done = -1, trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._begun:
            self._begun = trainer.global_step
            self.before_step(trainer, pl_module, self._begun)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._done:
            self._done = trainer.global_step
            self.on_step(trainer, pl_module, self._done)


def require_plain_model(module: Any, what: str) -> None:
    """Refuse a module without what hooks and snapshots need: the plain model, neither compiled nor wrapped.

    Raises:
        ValueError: it lacks `model` or `tokenizer`.
    """
    for attribute in ("model", "tokenizer"):
        if getattr(module, attribute, None) is None:
            raise ValueError(
                f"{type(module).__name__} has no attribute {attribute!r}; {what} the plain transformers model as "
                "`model` and its tokenizer as `tokenizer`"
            )
