"""Post-hoc analysis from the command line: `python -m analysis COMMAND --help`."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from babelscope.front import run_command

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
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return run_command("python -m analysis", COMMANDS, _run, arguments, classes_of=_classes)


def _run(name: str, given: list[str]) -> int:
    from babelscope.yaml_text import check_arguments

    check_arguments(given)
    command = importlib.import_module(f"analysis.commands.{name}")
    parser = make_parser(name)
    return command.run(parser.instantiate(parser.parse_args(given))) or 0


def make_parser(name: str) -> ArgumentParser:
    """The parser of a command; it raises what it refuses, and options show their docstrings."""
    from jsonargparse import ArgumentParser

    from babelscope.yaml_text import guard_parsers

    guard_parsers()
    parser = ArgumentParser(prog=f"python -m analysis {name}", description=COMMANDS[name], exit_on_error=False)
    importlib.import_module(f"analysis.commands.{name}").add_arguments(parser)
    return parser


def _classes(key: str) -> list[str]:
    """Names of the classes that an option takes."""
    if key == "source":
        from analysis.checkpoints import CheckpointSource as Base
    elif key == "executor":
        from analysis.checkpoints.executors import Executor as Base  # type: ignore[assignment]
    elif key == "analyses":
        from analysis.base import Analysis as Base  # type: ignore[assignment]
    else:
        return []
    from analysis.base import subclasses

    return sorted(cls.__name__ for cls in subclasses(Base) if not getattr(cls, "__abstractmethods__", None))


if __name__ == "__main__":
    sys.exit(main())
