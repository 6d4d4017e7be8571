"""`python -m train COMMAND`: the commands of pretraining. Errors of users are one line on stderr and exit code 2."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from babelscope.front import run_command, take_option
from babelscope.help_page import kept_page
from train.supervisor import supervise

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
    return run_command("python -m train", COMMANDS, run, arguments)


def run(command: str, arguments: list[str]) -> int:
    """Hand the arguments to the command's module, which is imported only now; returns the exit code.

    Raises:
        ValueError and others: whatever the command refuses.
    """
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
        restarts = None
        if command == "fit":
            restarts, arguments = take_option("--restarts", arguments, type=int)
        if restarts is not None:
            return supervise(arguments, restarts)
        quieten()

        def start() -> None:
            importlib.import_module("train.cli").TrainingCLI([command, *arguments])

        if arguments in (["-h"], ["--help"]):
            print(kept_page(command, start), end="")
        else:
            start()
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


if __name__ == "__main__":
    raise SystemExit(main())
