"""One process at a time in a run folder.

Two trainings that write the same snapshots, checkpoints and metrics ruin both. The first takes `<run>/run.lock` with
`flock`, which the kernel gives back when the process ends, however it ends: a lock of a dead process never blocks, and
there is no stale file to delete. The file names its holder only for the message. Of several ranks only rank 0 holds it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import weakref
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

log = logging.getLogger(__name__)

LOCK_FILE = "run.lock"

_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """Exclusive use of a folder, as a context manager or through `acquire` and `release`.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOCK_FILE
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock; a second call of the same object does nothing.

        Raises:
            ValueError: another process, or another object of this one, holds it; names host, process and time.
        """
        if self._descriptor is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            content = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise ValueError(
                f"{self.path.parent}: in use by {_describe(content)}; stop that one or choose another run folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                os.close(descriptor)
                raise
            log.warning(
                "%s: this filesystem has no locks (%s); see to it yourself that no other run uses the folder",
                self.path.parent,
                error,
            )
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat("T", "seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        self._descriptor = descriptor
        _held.add(self)

    def release(self) -> None:
        """Give the lock back; the file stays, since removing it could take the lock from under a third process."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _forget_in_child() -> None:
    """A forked data worker must not keep the lock of a training that was killed."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_forget_in_child)


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


class RunLock(Callback):
    """Refuses to train in a run folder (`trainer.default_root_dir`) that another process trains in.

    List it first: what later callbacks do in their `setup` is then safe. All ranks raise together.
    """

    def __init__(self) -> None:
        self._lock: FolderLock | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        refusal = ""
        if trainer.is_global_zero and self._lock is None:
            lock = FolderLock(trainer.default_root_dir)
            try:
                lock.acquire()
                self._lock = lock
            except (ValueError, OSError) as error:
                refusal = str(error)
        refusal = trainer.strategy.broadcast(refusal)
        if refusal:
            raise ValueError(refusal)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
