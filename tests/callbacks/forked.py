"""A process of its own for what ends a process."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_child(function: Callable[[], object]) -> int:
    """Fork a process that runs `function` and ends as a program would; returns its id."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            function()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 71
        finally:
            os._exit(code)
    return child
