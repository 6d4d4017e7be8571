"""The command `label`: texts and concept lists in, a concept file and its lexicon out."""

from __future__ import annotations

import sys
import typing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from docstring_parser import parse_from_object
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from analysis.concepts.file import check_suffix, format_summary, lexicon_path, write_labelling
from analysis.concepts.labelling import label_by_lists, label_concepts
from analysis.concepts.matching import LabellingSettings

CONCEPT_LIST = Path(__file__).resolve().parents[2] / "data" / "concepts.tsv"
"""The list that ships with the repository, whatever the working folder is."""


def add_arguments(parser: ArgumentParser) -> None:
    """The files, and every field of `LabellingSettings` with its docstring."""
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_argument("--texts", type=Path, required=True, help="texts: parquet or JSONL, long or wide")
    parser.add_argument(
        "--list",
        nargs="+",
        default=[str(CONCEPT_LIST)],
        metavar="[LANG=]FILE",
        help="one concept list in the pivot language, for parallel text; or one for each language, for any text",
    )
    parser.add_argument("--out", type=Path, required=True, help="concept file to write: .parquet or .jsonl")
    types = typing.get_type_hints(LabellingSettings)
    helps = {entry.arg_name: entry.description for entry in parse_from_object(LabellingSettings).params}
    for field in fields(LabellingSettings):
        name, default, told = f"--{field.name}", field.default, helps.get(field.name)
        if types[field.name] is bool:
            parser.add_argument(name, action=ActionYesNo, default=default, help=told)
        elif isinstance(default, tuple):
            parser.add_argument(name, nargs="+", default=list(default), metavar="NAME", help=told)
        else:
            parser.add_argument(name, type=types[field.name], default=default, help=told)


def run(options: Namespace) -> int:
    """Label, write the concept file and its lexicon, and report both."""
    check_suffix(options.out)
    given = {field.name: getattr(options, field.name) for field in fields(LabellingSettings)}
    chosen: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    settings = LabellingSettings(**chosen)
    by_language = dict(given.split("=", 1) for given in options.list if "=" in given)
    if by_language:
        if len(by_language) < len(options.list):
            raise ValueError(f"--list {' '.join(options.list)}: give one list, or LANG=FILE once for each language")
        labelling = label_by_lists(options.texts, by_language, settings)
    elif len(options.list) == 1:
        labelling = label_concepts(options.texts, options.list[0], settings)
    else:
        raise ValueError(f"--list {' '.join(options.list)}: say whose each list is, as LANG=FILE")
    origin = {"texts": options.texts.name, "list": " ".join(Path(given).name for given in options.list)}
    write_labelling(labelling, options.out, origin | asdict(settings))
    sys.stdout.write(f"{format_summary(labelling)}\nwritten: {options.out}, {lexicon_path(options.out)}\n")
    return 0
