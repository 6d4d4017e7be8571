"""Going on after a kill as if nothing had happened: the checkpoint from which training resumes bit for bit.

It is taken at one place only: before the first batch of an optimizer step, when everything of the step before is done
(its update, snapshot, analyses, log rows and validation). Lightning's own place is the end of a batch, before that
step's validation and log rows, which a resume then loses. What Lightning leaves out is added: the random state of every
rank. Data needs none: a batch is a function of (seed, step), and the data module compares what may not change (its
`state_dict`). Writing and verifying is in `callbacks.checkpoint_io`, signals are in `callbacks.signals`.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from babelscope.errors import one_line
from babelscope.files import remove_leftovers
from callbacks.checkpoint_io import (
    DurableCheckpointIO,
    checkpoint_step,
    find_checkpoints,
    newest_checkpoint,
)
from callbacks.left import set_aside
from callbacks.rng import capture_rng, gather_rng, restore_rng
from callbacks.signals import ListenFirst, StoppedBySignal, StopSignals, agree
from callbacks.snapshots import checkpoint_file, manifest_file
from callbacks.step import StepCallback

log = logging.getLogger(__name__)

STATE_KEY = "babelscope_resume"
NO_LIMIT = 2**62

Place = Literal["step", "validation", "end"]


class ResumeCheckpoint(StepCallback, Checkpoint):
    """Keeps the newest `<run folder>/checkpoints/step_*.ckpt`, each with a manifest, and stops cleanly when told to.

    A checkpoint is written every `every_n_steps` steps, every `every_n_minutes` minutes, at the end of training, and
    after a signal on any rank; then the process exits with 128 + the signal's number (see `callbacks.signals`) and the
    same command goes on from there. A signal during a validation is heard between its batches; the resumed run does
    that validation again from its start. What lies after the checkpoint that training goes on from is set aside where
    it is of a course that is left (see `callbacks.left`). A full disk never stops the training: the old checkpoints
    stay, the loss is logged and counted in `failures`.

    A `Checkpoint` callback, so Lightning runs it after all plain ones: order snapshots, analyses, tracking, this.

    Args:
        every_n_steps: optimizer steps between two checkpoints; None: no such rule.
        every_n_minutes: minutes between two checkpoints, by the clock of rank 0; None: no such rule.
        keep: number of checkpoints that stay. With 1 there is nothing to fall back on if a disk damages it.
        signals: signals that mean "save and stop". Under SLURM add the one of `--signal`, e.g. SIGUSR1.
        grace_seconds: seconds after the signal at which the process ends unsaved if the step never ends.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 10.0,
        keep: int = 2,
        signals: tuple[str, ...] = ("SIGTERM", "SIGINT"),
        grace_seconds: float = 300.0,
    ) -> None:
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; use at least 1, or None for no such rule")
        if every_n_minutes is not None and not every_n_minutes > 0:
            raise ValueError(f"every_n_minutes is {every_n_minutes}; use more than 0, or None for no such rule")
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least 1 checkpoint must stay")
        self.every_n_steps, self.every_n_minutes, self.keep = every_n_steps, every_n_minutes, keep
        self.failures = 0
        """Checkpoints lost to a full disk or the like since the fit began."""
        self._signals = StopSignals(signals, grace_seconds)
        self._loaded: dict[str, Any] | None = None
        """State of a checkpoint until the training loop has reached the place at which it was taken."""
        self._start = 0
        """Step from which this fit goes on."""
        self._saved_step = -1
        self._saved_time = 0.0
        self._place: Place | None = None
        """Where the checkpoint that is being written is taken; None if somebody else asked for one."""
        self._rng: list[dict[str, Any]] = []
        self._rng_before_validation: dict[str, Any] = {}
        self._shared_batches: list[int] = []
        """Validation batches of each loader that every rank has."""

    newest_checkpoint = staticmethod(newest_checkpoint)
    """From which a run in a folder goes on."""

    def request_stop(self, signum: int) -> None:
        """Stop as if the signal had come: at the end of this step, saved. May be called from any thread."""
        self._signals.received = self._signals.received or signum

    # start and end ----------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        current = trainer.strategy.checkpoint_io
        if type(current) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = DurableCheckpointIO()
        elif not isinstance(current, DurableCheckpointIO):
            raise ValueError(
                f"trainer.plugins: {type(current).__name__} would write the checkpoints; leave it out, since "
                "ResumeCheckpoint brings a writer of its own"
            )

        # an earlier fit that had nothing left to do has left its state
        self._loaded, self._start, self.failures = None, 0, 0
        if stage == "fit" and not any(isinstance(callback, ListenFirst) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.callbacks = [ListenFirst(self._signals), *trainer.callbacks]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not when the training starts: a kill during the analyses before that would leave the new configuration alone.
        if trainer.is_global_zero:
            changed = _is_from_elsewhere(trainer) or getattr(trainer.datamodule, "changed", False)  # type: ignore[attr-defined]
            set_aside(Path(trainer.default_root_dir), self._start, changed=changed)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        if _is_from_elsewhere(trainer):
            self._saved_step = -1  # saved here at once, or the next start would begin from nothing
        if trainer.is_global_zero:
            remove_leftovers(checkpoint_file(Path(trainer.default_root_dir), 0).parent)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step > self._saved_step:
            self._save(trainer, "end")
        self._signals.uninstall()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._signals.uninstall()

    # when to save and stop --------------------------------------------------------------------------------------------

    def before_step(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        self._restore(trainer)
        stop, due = agree(trainer, self._signals.received or 0, int(trainer.is_global_zero and self._is_due(step)))
        if (stop or due) and step > self._saved_step:
            self._save(trainer, "step")
        if stop:
            self._stop(trainer, stop)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not _validates_while_training(trainer):
            return
        self._restore(trainer)
        self._rng_before_validation = capture_rng()
        counts = [NO_LIMIT if math.isinf(number) else int(number) for number in trainer.num_val_batches]
        self._shared_batches = [-number for number in agree(trainer, *(-number for number in counts))]

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # Ranks may have different numbers of batches; they can only compare notes at those that all of them have.
        # Between the micro-batches of a step nothing can be saved: a stop waits for its end.
        midst = self._begun == trainer.global_step
        if midst or not _validates_while_training(trainer) or batch_idx >= self._shared_batches[dataloader_idx]:
            return
        (stop,) = agree(trainer, self._signals.received or 0)
        if stop:
            # A finished training never validates again after a resume, so its last validation must not count as done.
            if trainer.global_step > self._saved_step and trainer.global_step != trainer.max_steps:
                self._save(trainer, "validation")
            self._stop(trainer, stop)

    def _is_due(self, step: int) -> bool:
        by_steps = self.every_n_steps is not None and step % self.every_n_steps == 0
        elapsed = time.monotonic() - self._saved_time
        by_time = self.every_n_minutes is not None and elapsed >= 60 * self.every_n_minutes
        return by_steps or by_time or self._saved_step < 0

    def _stop(self, trainer: pl.Trainer, signum: int) -> None:
        if trainer.is_global_zero:
            newest = find_checkpoints(Path(trainer.default_root_dir))
            log.warning(
                "stopped by a signal at step %d; the same command goes on from %s",
                trainer.global_step,
                f"step {checkpoint_step(newest[0])}" if newest else "the start, nothing was saved yet",
            )
        raise StoppedBySignal(signum)

    # saving -----------------------------------------------------------------------------------------------------------

    def _save(self, trainer: pl.Trainer, place: Place) -> None:
        """Write the checkpoint of this moment; all ranks together."""
        step, folder = trainer.global_step, Path(trainer.default_root_dir)
        errors: list[OSError] = []
        state = self._rng_before_validation if place == "validation" else capture_rng()
        self._place, self._rng = place, gather_rng(trainer, state)
        try:
            trainer.save_checkpoint(
                checkpoint_file(folder, step), weights_only=False, storage_options={"on_error": errors.append}
            )
        finally:
            self._place, self._rng = None, []
        self._saved_step, self._saved_time = step, time.monotonic()
        if errors:
            self.failures += 1
            log.error(
                "step %d: checkpoint not written, %s; older ones are untouched and training goes on, %d lost so far",
                step,
                one_line(errors[0]),
                self.failures,
            )
        elif trainer.is_global_zero:
            self._remove_old(folder, step)

    def _remove_old(self, folder: Path, step: int) -> None:
        """Remove all but the newest `keep` finished checkpoints up to this step, and what was never finished."""
        older = [path for path in find_checkpoints(folder) if checkpoint_step(path) <= step]
        finished = [path for path in older if manifest_file(path).is_file()]
        for path in set(older) - set(finished[: self.keep]):
            try:
                DurableCheckpointIO().remove_checkpoint(path)
            except OSError as error:
                log.warning("%s: not removed, %s", path, one_line(error))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._place is None:
            return
        checkpoint[STATE_KEY] = {
            "rng": self._rng,
            "logger_step": trainer.fit_loop.epoch_loop._batches_that_stepped,
        }
        loops = checkpoint["loops"]["fit_loop"]
        if self._place == "step":
            # The coming batch is announced but not begun: to Lightning's resume it must look as if the last one had
            # just been completed, validation included.
            batches = loops["epoch_loop.batch_progress"]
            batches["is_last_batch"] = False
            for counters in (batches["total"], batches["current"]):
                counters.update(dict.fromkeys(("ready", "started", "processed"), counters["completed"]))
        elif self._place == "validation":
            # "In the midst of its first batch" makes Lightning run the whole validation again.
            batches = loops["epoch_loop.val_loop.batch_progress"]
            for counters in (batches["total"], batches["current"]):
                counters.update(ready=1, started=1, processed=0, completed=0)

    # resuming ---------------------------------------------------------------------------------------------------------

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        self._start = int(checkpoint["global_step"])
        state = checkpoint.get(STATE_KEY)
        if state is None:
            log.warning("the checkpoint was not written by ResumeCheckpoint: its random state is unknown")
            return
        self._loaded = state
        # A batch is a function of (seed, step); Lightning knows no such loaders and warns of every one without state.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")

    def _restore(self, trainer: pl.Trainer) -> None:
        """Put back what Lightning does not, once, where it was taken: after the loaders have drawn their seeds."""
        state, self._loaded = self._loaded, None
        if state is None:
            return
        trainer.fit_loop.epoch_loop._batches_that_stepped = state["logger_step"]
        if trainer.global_rank < len(state["rng"]):
            restore_rng(state["rng"][trainer.global_rank])


def _is_from_elsewhere(trainer: pl.Trainer) -> bool:
    """Whether the training goes on from a checkpoint that is not one of the run folder."""
    checkpoints = checkpoint_file(Path(trainer.default_root_dir), 0).parent.resolve()
    return trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve().parent != checkpoints


def _validates_while_training(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking
