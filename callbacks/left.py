"""A course of the training that is left: whatever was written after the step from which another one goes on.

Nothing of it may pass for the new course: not its checkpoints, from which the next start would go on, nor its results
and snapshots, which would keep their places, since what is there is neither measured nor written again.
"""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path

from analysis.snapshots import step_of
from callbacks.checkpoint_io import checkpoint_step, find_checkpoints, find_damage

log = logging.getLogger(__name__)


def set_aside(folder: Path, step: int, *, changed: bool) -> None:
    """Rename what lies after `step` if its course is left: `changed`, or good checkpoints of later steps are there.

    A start after a kill has neither: it goes on from the newest good checkpoint, and later results are those that it
    would compute again.
    """
    later = [path for path in find_checkpoints(folder) if checkpoint_step(path) > step and find_damage(path) is None]
    if not (changed or later):
        return
    for place in (folder / "results", folder / "snapshots"):
        names = [path.name for path in place.glob("step_*") if (step_of(path.name) or 0) > step]
        for name in sorted(names):
            (place / name).rename(_free_place(place, name))
        if names:
            log.warning("%s: %d later than step %d set aside as left_step_*", place, len(names), step)
    # Last: a kill before this leaves them there, so that the next start from `step` does the rest.
    for path in later:
        path.rename(path.with_suffix(".ckpt.left"))
        log.warning("%s: set aside as %s.left, since training goes on from step %d", path, path.name, step)


def _free_place(place: Path, name: str) -> Path:
    """`left_<name>`, or `left2_<name>` and so on where a course was left before."""
    return next(path for n in count(1) if not (path := place / f"left{n if n > 1 else ''}_{name}").exists())
