"""`--help` of the commands that Lightning's CLI parses, kept between calls: to list Lightning's options, Lightning and
torch are imported, which takes seconds."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

from babelscope.files import write_json

ROOT = Path(__file__).resolve().parents[1]


def kept_page(command: str, make: Callable[[], None]) -> str:
    """What `make` prints before it leaves, from the user's cache as long as nothing that it depends on has changed.

    Args:
        make: prints the help of the command and raises SystemExit, as parsers do.
    """
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "babelscope" / f"help_{command}.json"
    depends_on = _depends_on()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or not ours
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["depends_on"] == depends_on:
            return str(kept["page"])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        make()
    with contextlib.suppress(OSError):  # a home that cannot be written: made again next time
        write_json(path, {"depends_on": depends_on, "page": printed.getvalue()})
    return printed.getvalue()


def _depends_on() -> str:
    """A digest of the source, of everything installed, and of the width that lines are broken to."""
    found: list[object] = [sys.version, shutil.get_terminal_size().columns]
    found += sorted(f"{package.name} {package.version}" for package in distributions())
    for folder in ("analysis", "babelscope", "callbacks", "train"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            state = file.stat()
            found.append((str(file), state.st_size, state.st_mtime_ns))
    return hashlib.sha256(repr(found).encode()).hexdigest()
