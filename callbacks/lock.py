"""One process at a time in a run folder.

Two trainings that write the same snapshots, checkpoints and metrics ruin both. The first takes `<run>/run.lock` with
`flock`, which the kernel gives back when the process ends, however it ends: a lock of a dead process never blocks, and
there is no stale file to delete. Forked data workers do not keep it (`filelock` from 4.2 on). The file names its holder
only for the message. Of several ranks only rank 0 holds it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytorch_lightning as pl
from filelock import FileLock, Timeout
from pytorch_lightning.callbacks import Callback

log = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def lock_folder(folder: str | Path) -> FileLock:
    """Take a folder (made if it is not there) for this process until `release`.

    Raises:
        ValueError: another process, or another lock of this one, holds it; names host, process and time.
    """
    path = Path(folder) / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{path.parent}: in use by {_describe(path)}; stop that one or choose another run folder"
        ) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        log.warning(
            "%s: this filesystem has no locks (%s); see to it yourself that no other run uses the folder",
            path.parent,
            error,
        )
    since = datetime.now(UTC).isoformat("T", "seconds")
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}), encoding="utf-8")
    return lock


def _describe(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


class RunLock(Callback):
    """Refuses to train in a run folder (`trainer.default_root_dir`) that another process trains in.

    List it first: what later callbacks do in their `setup` is then safe. All ranks raise together.
    """

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        refusal = ""
        if trainer.is_global_zero and self._lock is None:
            try:
                self._lock = lock_folder(trainer.default_root_dir)
            except (ValueError, OSError) as error:
                refusal = str(error)
        refusal = trainer.strategy.broadcast(refusal)
        if refusal:
            raise ValueError(refusal)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._lock is not None:
            file = Path(self._lock.lock_file)
            with suppress(OSError):  # the folder was cleared away meanwhile
                if [path.name for path in file.parent.iterdir()] == [LOCK_FILE]:  # refused before it began
                    file.unlink()
                    file.parent.rmdir()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
