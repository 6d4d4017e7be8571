"""`python -m train COMMAND`: the commands of pretraining. Errors of users are one line on stderr and exit code 2."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from train.supervisor import supervise, take_restarts

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

COMMANDS = {
    "init": "own text to a configuration and a list of analyses that fit it",
    "fit": "pretrain, or go on with a run",
    "validate": "bits per byte of a run's newest checkpoint, per language",
    "describe": "what a run will be, before anything runs: parameters, FLOPs, steps, disk, memory, hours",
    "tokenizer": "train a tokenizer, or measure one, on the text of a configuration",
    "prepare": "tokenise the text of a configuration into memory-mapped files",
    "audit": "n-grams that training text shares with evaluation text",
}
TEXT_COMMANDS = {
    "init": "train.own.command",
    "tokenizer": "train.commands",
    "prepare": "train.commands",
    "audit": "train.commands",
}
"""Commands on text alone and the modules of `add_<name>_arguments` and `run_<name>`, without Lightning."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # Before torch is loaded: threads that wait for each other sleep. On a busy machine they spin away 3 times the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    command = arguments[0]
    try:
        return run(command, arguments[1:])
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("BABELSCOPE_TRACEBACK") or not _is_expected(error):
            raise
        from train.config.errors import one_line

        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def usage() -> str:
    lines = [f"  {name:12} {text}" for name, text in COMMANDS.items()]
    end = "The options of a command: python -m train COMMAND --help"
    return "\n".join(["usage: python -m train COMMAND [options]", "", *lines, "", end])


def run(command: str, arguments: list[str]) -> int:
    """Hand the arguments to the command's module, which is imported only now; returns the exit code.

    Raises:
        ValueError: no such command; and whatever the command refuses.
    """
    if command not in COMMANDS:
        raise ValueError(f"unknown command {command!r}; choose one of {', '.join(COMMANDS)}")
    if command in TEXT_COMMANDS:
        parser = make_parser(command)
        getattr(importlib.import_module(TEXT_COMMANDS[command]), f"run_{command}")(parser.parse_args(arguments))
    elif command == "describe":
        if {"-h", "--help"} & set(arguments):
            make_parser(command).print_help()
            return 0
        quieten()
        importlib.import_module("train.describe").main(arguments)
    else:
        restarts, arguments = take_restarts(arguments) if command == "fit" else (None, arguments)
        if restarts is not None:
            return supervise(arguments, restarts)
        quieten()
        importlib.import_module("train.cli").TrainingCLI([command, *arguments])
    return 0


def make_parser(command: str) -> ArgumentParser:
    """The parser of a command that is not Lightning's (of `describe`: its own options); it raises its refusals."""
    from jsonargparse import ArgumentParser

    about = COMMANDS[command]
    if command == "describe":
        about += "\n\nAll options of `python -m train fit` are taken too, see there."
    parser = ArgumentParser(prog=f"python -m train {command}", description=about, exit_on_error=False)
    module = TEXT_COMMANDS.get(command, "train.commands")
    getattr(importlib.import_module(module), f"add_{command}_arguments")(parser)
    return parser


def quieten() -> None:
    """Leave out what Lightning says of itself at every start; its warnings stay."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*")


def _is_expected(error: Exception) -> bool:
    """Errors that a user can mend: bad values, missing files, refusals of Lightning, a run that diverged."""
    expected = {"ArgumentError", "MisconfigurationException", "TrainingDivergedError"}
    return isinstance(error, ValueError | OSError) or type(error).__name__ in expected


if __name__ == "__main__":
    raise SystemExit(main())
