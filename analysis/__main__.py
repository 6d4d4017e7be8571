"""Post-hoc analysis from the command line: `python -m analysis COMMAND --help`."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

COMMANDS = {
    "run": "measure all checkpoints of a run or suite that lack results",
    "checkpoints": "list the checkpoints: step, tokens, size, what is cached",
    "report": "write one HTML report for one or more runs",
    "replay": "make the W&B page of a run again, or that of post-hoc results",
    "view": "save a view of ten panels in a W&B project",
    "steer": "generate with concept neurons forced, and judge the texts",
    "label": "turn text and concept lists into a concept file",
    "publish": "push the snapshots of a run to the hub, with a model card",
}
"""Modules of `analysis.commands` with `add_arguments(parser)` and `run(options) -> exit code`; imported when needed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0 is success, 1 a sweep with failures, 2 a mistake in what was asked for."""
    # Before torch is loaded: threads that wait for each other sleep. On a busy machine they spin away 3 times the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help"}:
        print("usage: python -m analysis COMMAND [options]\n")
        print("\n".join(f"  {name:12} {text}" for name, text in COMMANDS.items()))
        print("\nThe options of a command: python -m analysis COMMAND --help")
        return 0 if given else 2
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return _run(given[0], given[1:])
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("BABELSCOPE_TRACEBACK") or not _is_expected(error):
            raise
        from analysis.commands.errors import reword

        print(f"error: {reword(str(error))}", file=sys.stderr)
        return 2


def _run(name: str, given: Sequence[str]) -> int:
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}; choose one of {', '.join(COMMANDS)}")
    from babelscope.yaml_text import check_arguments

    check_arguments(given)
    command = importlib.import_module(f"analysis.commands.{name}")
    parser = make_parser(name)
    return command.run(parser.instantiate(parser.parse_args(list(given)))) or 0


def make_parser(name: str) -> ArgumentParser:
    """The parser of a command; it raises what it refuses, and options show their docstrings."""
    from jsonargparse import ArgumentParser

    from babelscope.yaml_text import guard_parsers

    guard_parsers()
    parser = ArgumentParser(prog=f"python -m analysis {name}", description=COMMANDS[name], exit_on_error=False)
    importlib.import_module(f"analysis.commands.{name}").add_arguments(parser)
    return parser


def _is_expected(error: Exception) -> bool:
    """Mistakes of users: bad values, missing files, and what jsonargparse refuses."""
    return isinstance(error, ValueError | OSError) or type(error).__name__ == "ArgumentError"


if __name__ == "__main__":
    sys.exit(main())
