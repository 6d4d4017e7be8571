"""Post-hoc analysis from the command line: `python -m analysis COMMAND --help`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from jsonargparse import ArgumentError, ArgumentParser
from transformers.utils.logging import disable_progress_bar


@dataclass(frozen=True)
class Command:
    """A module with a function that adds its options to a parser and one that runs with them."""

    module: str
    help: str
    add_arguments: str = "add_arguments"
    run: str = "run"
    configurable: bool = True
    """Options may come from a YAML file and be objects (jsonargparse); else plain argparse does."""


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are one line, as everywhere here."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


COMMANDS = {
    "run": Command(
        "analysis.commands.run", "measure all checkpoints of a run or suite that lack results", "add_run_arguments"
    ),
    "checkpoints": Command(
        "analysis.commands.run",
        "list the checkpoints: step, tokens, size, what is cached",
        "add_run_arguments",
        "checkpoints",
    ),
    "report": Command("analysis.commands.report", "write one HTML report for one or more runs", configurable=False),
    "steer": Command("analysis.commands.steer", "generate with concept neurons forced, and judge the texts"),
    "label": Command("analysis.concepts.labelling", "turn aligned text into a concept file", configurable=False),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0 is success, 1 a sweep with failures, 2 a mistake in what was asked for."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help"}:
        print("usage: python -m analysis COMMAND [options]\n")
        print("\n".join(f"  {name:12} {command.help}" for name, command in COMMANDS.items()))
        print("\nThe options of a command: python -m analysis COMMAND --help")
        return 0 if given else 2
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    disable_progress_bar()  # a bar for every checkpoint's weights would break the bar of the sweep
    try:
        return _run(given[0], given[1:])
    except (ValueError, OSError, ArgumentError) as error:
        if os.environ.get("BABELSCOPE_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _run(name: str, given: Sequence[str]) -> int:
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}; choose one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    prog = f"python -m analysis {name}"
    if command.configurable:
        parser = ArgumentParser(prog=prog, description=command.help, exit_on_error=False)
        getattr(module, command.add_arguments)(parser)
        return getattr(module, command.run)(parser.instantiate(parser.parse_args(list(given)))) or 0
    plain = _Parser(prog=prog, description=command.help)
    getattr(module, command.add_arguments)(plain)
    return getattr(module, command.run)(plain.parse_args(list(given))) or 0


if __name__ == "__main__":
    sys.exit(main())
