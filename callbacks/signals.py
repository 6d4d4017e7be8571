"""Being told to stop: every rank agrees on one moment, at which the state can be saved and the process can end.

A signal reaches any rank, at any time. Its handler only takes a note; at the next boundary between optimizer steps (and
between batches of a validation) the ranks compare notes with one small all-reduce, so that all of them stop at the same
boundary, whoever was told. Lightning 2.6 broadcasts from inside its handler instead, and hangs when only a rank other
than 0 is told. A second signal ends the process at once, and so does the end of a grace period, should the boundary
never come (a rank that died, a stuck collective).

Exit codes: 128 + the signal's number (143 after SIGTERM, 130 after SIGINT), also when the state was saved and the same
command goes on from there; 0 only when the training is complete. Under SLURM, `#SBATCH --signal=USR1@180` with SIGUSR1
among the signals gives three minutes before the time limit; a job script that then reads exit code 138 calls
`scontrol requeue $SLURM_JOB_ID`. Lightning's own requeueing is not used.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback


class StoppedBySignal(SystemExit):
    """Ends the training after a signal; the process exits with 128 + the signal's number, without a traceback."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class StopSignals:
    """Handlers that take a note of the first signal and end the process at the second.

    Args:
        names: signals to handle, e.g. SIGTERM, SIGINT, SIGUSR1.
        grace_seconds: seconds from the first signal after which the process ends unsaved.
    """

    def __init__(self, names: Sequence[str] = ("SIGTERM", "SIGINT"), grace_seconds: float = 300.0) -> None:
        if not grace_seconds > 0:
            raise ValueError(f"grace_seconds is {grace_seconds}; use more than 0 seconds")
        unknown = [name for name in names if not name.startswith("SIG") or not hasattr(signal, name)]
        if unknown:
            raise ValueError(f"signals: {unknown[0]!r} is no signal of this system; use names such as SIGTERM, SIGUSR1")
        if fixed := {"SIGKILL", "SIGSTOP"} & set(names):
            raise ValueError(f"signals: {min(fixed)} cannot be handled; use SIGTERM, SIGINT, SIGUSR1 or the like")
        self.numbers = tuple(int(getattr(signal, name)) for name in names)
        self.received: int | None = None
        """Number of the first signal that this process received since `install`."""
        self.grace_seconds = grace_seconds
        self._deadline: threading.Timer | None = None
        self._before: dict[int, Any] = {}
        self._process = -1

    def install(self) -> None:
        """Take the signals over from whoever has them (Lightning); a second call does nothing. Main thread only."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        self.received, self._process = None, os.getpid()
        for number in self.numbers:
            self._before[number] = signal.signal(number, self._on_signal)

    def uninstall(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _die_as_a_worker(number)
            return
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        # A thread, since the main one may be stuck in a collective where no Python code runs.
        self._deadline = threading.Timer(self.grace_seconds, os._exit, (128 + number,))
        self._deadline.daemon = True
        self._deadline.start()
        # Logging may hold a lock that the interrupted code holds too; a plain write cannot deadlock.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: stopping after this step; once more to stop at once\n".encode())


class ListenFirst(Callback):
    """Takes the signals over from Lightning before other callbacks begin the long work of step 0."""

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.install()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.install()


def told_to_stop(trainer: pl.Trainer) -> bool:
    """Whether this rank has been told: what takes long within a step asks between its parts."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return any(one.signals.received is not None for one in callbacks if isinstance(one, ListenFirst))


def _die_as_a_worker(number: int) -> None:
    """A forked data worker inherits the handler. Ctrl-C goes to the whole group: the parent decides about that one."""
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def agree(trainer: pl.Trainer, *numbers: int) -> list[int]:
    """The maximum of each number over all ranks: what any of them wants. Every rank must call it at the same point."""
    if trainer.world_size == 1 or not dist.is_initialized():
        return list(numbers)
    shared = torch.tensor(numbers, dtype=torch.int64, device=trainer.strategy.root_device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return [int(number) for number in shared.tolist()]
