"""The data module that a command's options describe: `--config`, or `--text` files without any config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from train.data.sources import LocalText, TextSource
from train.datamodule import MultilingualDataModule


def read_options(args: argparse.Namespace) -> MultilingualDataModule:
    """The data module that a command's --config (its `data:` section) or --text options describe.

    Raises:
        ValueError: neither is given, or the section is not valid.
    """
    if args.config:
        section = _data_section(args.config)
        if args.languages:
            section["languages"] = args.languages
        return _instantiate(section)
    if not getattr(args, "text", None):
        raise ValueError("no text: give --config with a `data:` section, or --text FILE")
    sources: list[TextSource] = []
    for entry in args.text:
        language, equals, path = entry.partition("=")
        sources.append(LocalText(files_by_language={language: path}) if equals else LocalText(path=entry))
    return MultilingualDataModule(sources=sources, tokenizer="", languages=args.languages)


def _data_section(paths: Sequence[str]) -> dict[str, Any]:
    """The `data:` sections of YAML files, later ones winning key by key."""
    section: dict[str, Any] = {}
    for path in paths:
        try:
            config = yaml.safe_load(Path(path).read_text())
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: no such config") from error
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
        data = (config or {}).get("data") or {}
        section |= data.get("init_args", data)
    if not section:
        raise ValueError(f"{', '.join(paths)}: no `data:` section")
    return section


def _instantiate(section: dict[str, Any]) -> MultilingualDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MultilingualDataModule, "data")
    try:
        return parser.instantiate_classes(parser.parse_object({"data": section})).data
    except ArgumentError as error:
        raise ValueError(f"data section: {' '.join(str(error).split())}") from error
