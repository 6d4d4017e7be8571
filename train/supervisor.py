"""`python -m train fit --restarts N`: starts the training as a child, and again when it crashed.

A crash is an end by an uncaught error, by a signal (SIGKILL of the out-of-memory killer), or by the watchdog. The end
of the training, a mistake of the user and a stop that somebody asked for are none. Every further start goes on from the
newest checkpoint. The child has a process group of its own: ranks that are left of a crash, a stopped one among them,
are killed before the next start.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
NO_PROGRESS = 128 + signal.SIGALRM
"""The exit code of `callbacks.watchdog`: of all above 128 the only one that is a crash."""
LONGEST_PAUSE = 16.0
"""Seconds before a restart; the first comes after one second, each further one after twice as long."""


def supervise(arguments: Sequence[str], restarts: int) -> int:
    """Run `python -m train fit ARGUMENTS` until it ends for good; returns its exit code.

    Raises:
        ValueError: a number below 1, or a launcher that has started this process as one of several ranks.
    """
    if restarts < 1:
        raise ValueError(f"--restarts {restarts}: use at least 1, or leave it out")
    if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise ValueError(
            "--restarts cannot restart the ranks of a launcher; use torchrun's --max-restarts, or requeue the job"
        )
    started = Path(sys.argv[0])  # `babelscope` looks into the working folder last
    part = ["babelscope", "train"] if "babelscope" in (started.stem, started.parent.name) else ["train"]
    command = [sys.executable, "-m", *part, "fit", *arguments]
    with _Child() as child:
        code = child.run(command)
        for number in range(restarts):
            if child.told or not is_crash(code):
                break
            pause = min(2.0**number, LONGEST_PAUSE)
            left = restarts - number - 1
            log.warning("the training crashed (%s); again in %g seconds, %d restarts left", _say(code), pause, left)
            if child.told_within(pause):
                break
            code = child.run([*command, "--resume", "auto"])
    return code if code >= 0 else 128 - code


def is_crash(code: int) -> bool:
    """Whether this exit code (negative: the signal that ended the process) calls for another start."""
    return code < 0 or code == NO_PROGRESS or (code not in (0, 2) and code <= 128)


class _Child:
    """One child at a time, in a process group of its own, to which the signals that come inside the `with` pass on."""

    def __init__(self) -> None:
        self.told = False
        """Whether a signal came: then the end was asked for."""
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Child:
        self._before = {number: signal.signal(number, self._pass_on) for number in PASSED_ON}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: list[str]) -> int:
        self._process = subprocess.Popen(command, start_new_session=True)
        if self.told:  # while it was started
            self._process.terminate()
        code = self._process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # ranks that are left, stopped ones too
        return code

    def told_within(self, seconds: float) -> bool:
        """Wait, but not beyond a signal."""
        end = time.monotonic() + seconds
        while not self.told and time.monotonic() < end:
            time.sleep(0.05)
        return self.told

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def _say(code: int) -> str:
    if code == NO_PROGRESS:
        return "no progress, see the folder stacks of the run"
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name
