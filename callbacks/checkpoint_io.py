"""Checkpoint files that verify: written whole with a manifest beside them, found again only if they match it.

Lightning's own writer goes through the system's temporary folder; where that is another filesystem, a kill leaves half
a file under the final name. Here the file is written beside its final name, synced and renamed, and then the manifest
follows with size and SHA-256. Reading is always `weights_only`: a checkpoint cannot run code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from analysis.checkpoints.weights import load_pickled
from analysis.snapshots import step_of
from babelscope.errors import one_line
from babelscope.files import file_sha256, write_file, write_json
from callbacks.snapshots import checkpoint_file, manifest_file

log = logging.getLogger(__name__)


class DurableCheckpointIO(CheckpointIO):
    """Lightning's interface to the functions below, for `strategy.checkpoint_io`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `path` and its manifest.

        `storage_options={"on_error": function}` hands an `OSError` (full disk) to the function instead of raising, so
        that the ranks which do not write are not left waiting in Lightning's barrier.
        """
        on_error: Callable[[OSError], None] | None = (storage_options or {}).get("on_error")
        path = Path(path)
        try:
            size, sha256 = write_file(path, lambda file: torch.save(checkpoint, file))
            write_json(manifest_file(path), {"file": path.name, "size": size, "sha256": sha256})
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove manifest and file, in this order: a file without manifest is not taken for a finished one."""
        manifest_file(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def load_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint, on the CPU; `mmap` leaves them on disk until they are used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: torn, or it holds objects that are not tensors or plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    content = load_pickled(path, str(path.parent), mmap=mmap)
    if "state_dict" not in content:
        raise ValueError(f"{path}: not a checkpoint of a training")
    return content


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it equals its manifest and loads."""
    try:
        manifest = json.loads(manifest_file(path).read_text(encoding="utf-8"))
        size, sha256 = int(manifest["size"]), str(manifest["sha256"])
    except FileNotFoundError:
        return "it has no manifest, so it was never finished"
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest is damaged"
    try:
        if path.stat().st_size != size:
            return f"it has {path.stat().st_size:,} of {size:,} bytes"
        if file_sha256(path) != sha256:
            return "its content does not match its SHA-256"
        load_checkpoint(path, mmap=True)
    except (OSError, ValueError) as error:
        return one_line(error)
    return None


def find_checkpoints(run_folder: Path) -> list[Path]:
    """All resume checkpoints of a run, newest first, good or not."""
    found = checkpoint_file(run_folder, 0).parent.glob("*.ckpt")
    return sorted((path for path in found if step_of(path.stem) is not None), key=checkpoint_step, reverse=True)


def checkpoint_step(path: Path) -> int:
    step = step_of(path.stem)
    assert step is not None, path
    return step


def newest_checkpoint(run_folder: str | Path) -> Path | None:
    """The newest resume checkpoint that verifies; None if the run has none yet. Says which ones it passed over.

    A file without manifest (killed between the two) was still renamed only after it was whole: if nothing better is
    there and it loads, it is taken.

    Raises:
        ValueError: there are checkpoints but none can be used; starting anew by itself would throw the run away.
    """
    paths = find_checkpoints(Path(run_folder))
    problems = {}
    for path in paths:
        problem = find_damage(path)
        if problem is None:
            return path
        log.warning("%s: passed over, %s", path, problem)
        problems[path] = problem
    for path in paths:
        if manifest_file(path).is_file():
            continue
        try:
            load_checkpoint(path)
        except ValueError:
            continue
        log.warning("%s: taken although it has no manifest; it loads, and no other checkpoint is left", path)
        return path
    if paths:
        raise ValueError(
            f"{paths[0]}: {problems[paths[0]]}, and no other checkpoint of the run verifies either; put a copy in its "
            f"place, or delete {paths[0].parent} to start the run anew"
        )
    return None
