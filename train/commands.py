"""The commands on text alone: `tokenizer`, `prepare` and `audit`, each a function for its options and one that runs it.

The text is that of a training config (`--config`, its `data:` section) or of files named by `--text`. What is heavy is
imported when a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, Namespace

from babelscope.errors import one_line
from babelscope.yaml_text import read_yaml

if TYPE_CHECKING:
    from train.data.documents import TextSource
    from train.datamodule import MultilingualDataModule


def read_options(args: Namespace, **changes: Any) -> MultilingualDataModule:
    """The data module that a command's --config (its `data:` section) or --text options describe.

    Args:
        changes: options of the section that the command line gives.

    Raises:
        ValueError: neither is given, or both, or the section is not valid.
    """
    if args.config and args.get("text"):
        raise ValueError("--config and --text both name the text; give one of them")
    if args.config:
        section = _data_section(args.config)
        if args.languages:
            changes["languages"] = args.languages
        return _instantiate(section | changes)
    from train.data.sources import LocalText
    from train.datamodule import MultilingualDataModule

    if not args.get("text"):
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
        config = read_yaml(path)
        data: dict[str, Any] = (config.get("data") if isinstance(config, dict) else None) or {}
        section |= data.get("init_args", data)
    if not section:
        raise ValueError(f"{', '.join(paths)}: no `data:` section")
    return section


def _instantiate(section: dict[str, Any]) -> MultilingualDataModule:
    from train.datamodule import MultilingualDataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MultilingualDataModule, "data")
    try:
        return parser.instantiate_classes(parser.parse_object({"data": section})).data
    except ArgumentError as error:
        raise ValueError(f"data section: {one_line(error)}") from None


def add_describe_arguments(parser: ArgumentParser) -> None:
    """What `python -m train describe` takes beside the options of `fit`."""
    parser.add_argument(
        "--tokens_per_second", nargs="+", type=float, metavar="N", help="speeds at which hours are shown"
    )


def add_tokenizer_arguments(parser: ArgumentParser) -> None:
    """Options of `python -m train tokenizer`."""
    parser.add_argument("--config", action="append", help="training config whose `data:` section names the text")
    parser.add_argument("--text", action="append", help="a local text file instead (parquet, JSONL, txt), or LANG=PATH")
    parser.add_argument("--languages", nargs="+", help="only these (default: those of the config or the text)")
    parser.add_argument("--vocab_size", type=int | None, help="number of tokens; null is that of the config, else 8192")
    parser.add_argument("--alpha", type=float | None, help="share of a language ~ bytes^alpha; null is 0.3")
    parser.add_argument("--seed", type=int | None, help="order in which texts are drawn; null is that of the data")
    parser.add_argument("--output", help="folder of the new tokenizer (default: that of the config)")
    parser.add_argument("--measure", metavar="NAME_OR_PATH", help="do not train: measure this tokenizer")


def run_tokenizer(args: Namespace) -> None:
    """Train and save (or load) a tokenizer; writes its fertility on the valid split to stdout."""
    from train.data.tokenizer import ensure_tokenizer, load_tokenizer

    options = read_options(args)
    alpha, seed = 0.3 if args.alpha is None else args.alpha, options.seed if args.seed is None else args.seed
    if args.measure:
        if ignored := [name for name in ("vocab_size", "output", "alpha", "seed") if args[name] is not None]:
            raise ValueError(
                f"--measure {args.measure} trains nothing, so --{ignored[0]} says nothing; leave one of the two out"
            )
        tokenizer = load_tokenizer(args.measure)
    else:
        output = args.output or options.tokenizer_name
        if not output:
            raise ValueError("no folder for the tokenizer: give --output, or --config with data.tokenizer")
        vocab_size = args.vocab_size or options.requested_vocab_size or 8192
        if not ensure_tokenizer(output, lambda: options.texts("train"), vocab_size, alpha=alpha, seed=seed):
            raise ValueError(
                f"{output}: something is there already; look at it with --measure {output}, give another folder as "
                "--output, or remove it"
            )
        tokenizer = load_tokenizer(output)
        sys.stdout.write(f"{output}: {len(tokenizer)} tokens\n")
    sys.stdout.write(options.fertility(tokenizer) + "\n")


def add_prepare_arguments(parser: ArgumentParser) -> None:
    """Options of `python -m train prepare`."""
    parser.add_argument("--config", action="append", required=True, help="training config with a `data:` section")
    parser.add_argument("--languages", nargs="+", help="only these")
    parser.add_argument("--workers", type=int | None, help="processes (default: data.prepare_workers)")
    parser.add_argument("--verify", action=ActionYesNo, default=False, help="read everything again and check its hash")


def run_prepare(args: Namespace) -> None:
    """Prepare, and write the counts to stdout."""
    from train.data.prepare import format_prepared, verify

    options = read_options(args, **({} if args.workers is None else {"prepare_workers": args.workers}))
    options.prepare_data()
    options.setup()
    if args.verify:
        verify(options.prepared_text)
    sys.stdout.write(f"{format_prepared(options.prepared_text)}\n{options.prepared_text.folder}\n")


def add_audit_arguments(parser: ArgumentParser) -> None:
    """Options of `python -m train audit`."""
    parser.add_argument("--config", action="append", help="training config whose `data:` section names the text")
    parser.add_argument("--text", action="append", help="a local training file instead, or LANG=PATH")
    parser.add_argument("--languages", nargs="+", help="only these")
    parser.add_argument("--evaluation", help="file of evaluation text (default: the valid and test splits of the data)")
    parser.add_argument("--n", type=int, default=13, help="words in an n-gram")
    parser.add_argument("--n_characters", type=int | None, help="the same in characters; null is 25 for 13 words")
    parser.add_argument("--examples", type=int, default=0, help="print so many contaminated texts per language")


def run_audit(args: Namespace) -> None:
    """Audit and write the table to stdout."""
    from train.data.decontamination import audit, format_audit
    from train.data.documents import resolve_languages, stream_documents
    from train.data.sources import LocalText

    lengths = {"n": args.n, "n_characters": args.n_characters, "num_examples": args.examples}
    audit((), {}, **lengths)  # refuses what cannot be, before any text is read
    options = read_options(args)
    if args.evaluation:
        source = LocalText(args.evaluation)
        shared = sorted({*source.languages()} & {*options.text_languages})
        if not shared:
            raise ValueError(f"--evaluation {args.evaluation}: has none of {', '.join(options.text_languages)}")
        languages = resolve_languages([source], args.languages or shared)
        documents = stream_documents([source], languages)
    else:
        languages = options.text_languages
        documents = (one for one in stream_documents(options.sources, languages) if one.split != "train")
    evaluation = {language: list[str]() for language in languages}
    for document in documents:
        evaluation[document.language].append(document.text)
    exclusion = options.exclusion()
    training = (
        (document.language, document.text)
        for document in stream_documents(options.sources, sorted(evaluation))
        if document.split == "train" and exclusion.rule(document) is None
    )
    reports = audit(training, evaluation, **lengths)
    sys.stdout.write(format_audit(reports) + "\n")
    for report in reports:
        for example in report.examples:
            sys.stdout.write(f"{report.language}: {example}\n")
