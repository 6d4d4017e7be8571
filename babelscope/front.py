"""What the command lines of `train` and `analysis` share: a table of commands, and mistakes of users as one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

EXPECTED = ("ArgumentError", "MisconfigurationException", "TrainingDivergedError")
"""Refusals of jsonargparse and Lightning, and a run that diverged: for users to mend, like a ValueError or OSError."""


def run_command(
    program: str,
    commands: Mapping[str, str],
    run: Callable[[str, list[str]], int],
    arguments: Sequence[str] | None,
    *,
    classes_of: Callable[[str], list[str]] = lambda key: [],
) -> int:
    """Hand the arguments (None: those of the process) to a command; returns the exit code, 2 for a mistake.

    Args:
        commands: name to what it does.
        run: called with the name of a command and its arguments; gives the exit code.
        classes_of: names of the classes that an option takes, for the answer to one that does not exist.
    """
    # Before torch is loaded: threads that wait for each other sleep. On a busy machine they spin away 3 times the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(f"usage: {program} COMMAND [options]\n")
        print("\n".join(f"  {name:12} {text}" for name, text in commands.items()))
        print(f"\nThe options of a command: {program} COMMAND --help")
        return 0 if given else 2
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        if given[0] not in commands:
            raise ValueError(f"unknown command {given[0]!r}; choose one of {', '.join(commands)}")
        return run(given[0], given[1:])
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        expected = isinstance(error, ValueError | OSError) or type(error).__name__ in EXPECTED
        if os.environ.get("BABELSCOPE_TRACEBACK") or not expected:
            raise
        from babelscope.errors import reword

        print(f"error: {reword(error, classes_of)}", file=sys.stderr)
        return 2


def take_option(name: str, arguments: Sequence[str], **kind: Any) -> tuple[Any, list[str]]:
    """The value of an option that stands among those of another parser, and the other arguments.

    Args:
        kind: what `argparse` takes of the option.

    Raises:
        argparse.ArgumentError: a value of another kind.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    action = parser.add_argument(name, **kind)
    known, rest = parser.parse_known_args(arguments)
    return getattr(known, action.dest), rest
