"""Files and folders that are there whole or not at all, also after SIGKILL.

Everything is written under a temporary name in the folder where it will live, synced and renamed. A process that dies
in between leaves only names that start with `.` and end in `.tmp`, which `remove_leftovers` clears.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def write_text(path: Path, text: str) -> None:
    """Write, sync and rename, so that the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` (not there yet, or empty) when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(folder)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if folder.is_dir():
            remove_leftovers(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_leftover(path: Path) -> bool:
    """Whether this is the temporary name of a writer, living or killed."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Clear what killed writers (of `name`, or of anything) left in `folder`; the caller must hold a lock against
    living ones.
    """
    for path in filter(is_leftover, folder.iterdir()):
        if name and not path.name.startswith(f".{name}."):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")
