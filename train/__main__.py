"""`python -m train COMMAND`: the commands of pretraining. Errors of users are one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from jsonargparse import ArgumentError

COMMANDS = {
    "fit": "pretrain, or go on with a run",
    "validate": "bits per byte of a run's newest checkpoint, per language",
    "describe": "what a run will be, before anything runs: parameters, FLOPs, steps, disk, memory, hours",
    "tokenizer": "train a tokenizer, or measure one, on the text of a configuration",
    "prepare": "tokenise the text of a configuration into memory-mapped files",
    "audit": "n-grams that training text shares with evaluation text",
}
TEXT_COMMANDS = ("tokenizer", "prepare", "audit")
"""Commands of `train.commands`; the others belong to the Lightning command line."""

TRACEBACK_VARIABLE = "BABELSCOPE_TRACEBACK"
USER_ERRORS = (ValueError, OSError, ArgumentError)


class OneLineParser(argparse.ArgumentParser):
    """An argparse parser whose refusals are one line, as everywhere here."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    command = arguments[0]
    if command not in COMMANDS:
        print(f"error: unknown command {command!r}; commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        run(command, arguments[1:])
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1" or not _is_expected(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m train COMMAND ...", "", *lines, "", "python -m train COMMAND --help says more."]
    )


def run(command: str, arguments: list[str]) -> None:
    """Hand the arguments to the command's module."""
    if command in TEXT_COMMANDS:
        module = importlib.import_module("train.commands")
        parser = OneLineParser(prog=f"python -m train {command}")
        getattr(module, f"add_{command}_arguments")(parser)
        getattr(module, f"run_{command}")(parser.parse_args(arguments))
        return
    quieten()
    if command == "describe":
        importlib.import_module("train.describe").main(arguments)
        return
    from train.cli import TrainingCLI

    TrainingCLI([command, *arguments])


def quieten() -> None:
    """Leave out what Lightning says of itself at every start; its warnings stay."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*")


def _is_expected(error: Exception) -> bool:
    """Errors that a user can mend: bad values, missing files, refusals of Lightning, a run that diverged."""
    expected = {"MisconfigurationException", "TrainingDivergedError"}
    return isinstance(error, USER_ERRORS) or type(error).__name__ in expected


if __name__ == "__main__":
    raise SystemExit(main())
