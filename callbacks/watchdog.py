"""Noticing that nothing happens: a rank that died, a stuck collective, a file system that does not answer.

A thread of every rank watches the moment of its last progress. When that is too long ago, the rank writes where all its
threads are to `<run folder>/stacks/rank_<n>.txt` (a hang stops the others too, so each rank writes its own), and asks
for the stop that a signal asks for: if the step ends after all, the state is saved. If it does not, the process ends,
with exit code 142 (128 + SIGALRM), and the newest checkpoint stands. A state from the midst of a step is never saved.
Where native code holds the interpreter's lock, so that no thread runs, faulthandler writes the stacks and ends the
process (exit code 1).
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from callbacks.resume import ResumeCheckpoint

log = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGALRM
"""Of a process that the watchdog stopped or ended."""
LAST_RESORT = 5.0
"""Seconds after the end of the grace at which faulthandler ends a process whose own thread could not."""


class Watchdog(Callback):
    """Ends a training that makes no progress, see the module.

    Progress is a batch of training or validation begun or ended; snapshots and analyses of a step are not, so `seconds`
    must exceed the longest of them.

    Args:
        seconds: without progress, until the stacks are written and the stop is asked for.
        grace_seconds: after that, until the process ends unsaved.
    """

    def __init__(self, seconds: float = 1800.0, grace_seconds: float = 60.0) -> None:
        for name, value in (("seconds", seconds), ("grace_seconds", grace_seconds)):
            if not 0 < value < threading.TIMEOUT_MAX:
                raise ValueError(f"{name} is {value}; use a number of seconds above 0")
        self.seconds, self.grace_seconds = seconds, grace_seconds
        self._last = 0.0
        self._armed = 0.0
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._file: TextIO | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = Path(trainer.default_root_dir) / "stacks" / f"rank_{trainer.global_rank}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._ended.clear()
        self._armed = 0.0
        self._note()
        savers = [one for one in trainer.callbacks if isinstance(one, ResumeCheckpoint)]  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._watch, args=(savers,), name="watchdog", daemon=True)
        self._thread.start()

    def _note(self, *_: Any, **__: Any) -> None:
        """Progress was made."""
        now = time.monotonic()
        self._last = now
        wait = self.seconds + self.grace_seconds + LAST_RESORT
        if self._file is not None and now - self._armed > min(1.0, wait / 10):  # arming starts a thread
            self._armed = now
            faulthandler.dump_traceback_later(wait, exit=True, file=self._file)

    on_train_batch_start = _note
    on_train_batch_end = _note
    on_validation_batch_start = _note
    on_validation_batch_end = _note

    def _watch(self, savers: list[ResumeCheckpoint]) -> None:
        while True:
            left = self._last + self.seconds - time.monotonic()
            if left <= 0:
                break
            if self._ended.wait(left):
                return
        assert self._file is not None
        with suppress(OSError):  # what stands still may be the disk
            self._file.write(f"{datetime.now(UTC):%F %T} UTC: no progress for {self.seconds:g} seconds\n")
            self._file.flush()
            faulthandler.dump_traceback(self._file, all_threads=True)
        log.error(
            "no progress for %g seconds: %s says where each thread is; stopping after this step, or in %g seconds",
            self.seconds,
            self._file.name,
            self.grace_seconds,
        )
        for saver in savers:
            saver.request_stop(signal.SIGALRM)
        if not self._ended.wait(self.grace_seconds):
            os._exit(EXIT_CODE)

    def _stop(self, *_: Any, **__: Any) -> None:
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self._file is not None:
            empty = not os.fstat(self._file.fileno()).st_size
            with suppress(OSError):
                self._file.close()
            if empty:
                Path(self._file.name).unlink(missing_ok=True)
            self._file = self._thread = None

    on_train_end = _stop
    on_fit_end = _stop  # also of a training that had nothing left to do, which ends without the hook above
    on_exception = _stop
