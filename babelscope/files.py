"""Files and folders that are there whole or not at all, also after SIGKILL or a power cut.

Everything is written under a temporary name in the folder where it will live (the system's temporary folder may be
another filesystem, over which a rename is a copy that can be torn), synced, and renamed; then the folder is synced, so
that the name itself survives. A process that dies in between leaves only names starting with `.` and ending in `.tmp`,
which `remove_leftovers` clears.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast
from uuid import uuid4

log = logging.getLogger(__name__)


def temporary_name(path: Path) -> Path:
    """A fresh name beside `path` that no reader takes for a finished file."""
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")


def is_leftover(path: Path) -> bool:
    """Whether this is the temporary name of a writer, living or killed."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Filesystems that cannot sync a folder are left to their own promises."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        log.debug("%s: folder not synced: %s", folder, error)
    finally:
        os.close(descriptor)


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> tuple[int, str]:
    """Write `path` through `write(file)`; returns its size in bytes and the SHA-256 of its content.

    On any error the temporary file is removed, an older `path` is untouched, and the error goes on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as raw:
            file = HashingFile(raw)
            try:
                write(cast(IO[bytes], file))
            except Exception:
                # torch.save hides a full disk behind an error about its own bookkeeping.
                if file.error is not None:
                    raise file.error from None
                raise
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return file.size, file.sha256


def write_text(path: Path, text: str) -> None:
    write_file(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder that takes the place of `folder` when the block ends without an error.

    `folder` must not exist, or be one that its reader ignores: it is removed just before the rename.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(folder)
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            else:
                sync_folder(path)
        sync_folder(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder.parent)


def file_sha256(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path, pattern: str) -> dict[str, str]:
    """SHA-256 of the content of every file of a folder that matches the glob pattern, by its path in the folder."""
    files = [path for path in folder.glob(pattern) if path.is_file()]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(files)}


def file_stamp(path: str | Path) -> tuple[int, int] | None:
    """What changes when a file is written anew (time in nanoseconds, bytes); None if it is not there."""
    path = Path(path)
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Clear what killed writers (of `name`, or of anything) left in `folder`; the caller holds a lock against living
    ones."""
    for path in filter(is_leftover, folder.glob(".*")):
        if name and path.name.rsplit(".", 2)[0] != f".{name}":
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class HashingFile:
    """A file that hashes what is written to it, front to back. It has no `seek`, so nothing can be rewritten."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None
        """The first error of the file underneath."""

    def write(self, data: Any) -> int:
        try:
            written = self._raw.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self._hash.update(data)
        self.size += written
        return written

    def flush(self) -> None:
        self._raw.flush()

    @property
    def closed(self) -> bool:
        """Asked by pyarrow; closing is up to `write_file`."""
        return self._raw.closed

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()
