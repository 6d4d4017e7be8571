"""The command: own text in, a configuration of a run and the list of its analyses out.

    configs/mine.yaml                the run: everything is named once, paths are relative to this file
    configs/mine/analyses.yaml       what is measured, as far as the text allows
    configs/mine/held_out.parquet    the texts that training holds out, and some that it reads, for loss and probes
    configs/mine/concepts.parquet    labelled sentences, if there are translations or a concept list for each language

All text is read twice, to count it and to deal it to splits, and a third time where training leaves some of it out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from babelscope.files import new_folder, write_text

ROOT = Path(__file__).resolve().parents[2]
CONCEPT_LIST = ROOT / "data" / "concepts.tsv"
"""English word forms of 128 concepts, in a checkout."""
PATHS = frozenset(
    {"path", "files_by_language", "tokenizer", "cache", "default_root_dir", "exclude", "texts", "concepts", "analyses"}
)
"""Options that name files and folders."""
HEAD = """\
# Written by `python -m train init`; change what you like before the first start.
#
#   python -m train describe --config {out}
#   python -m train fit --config {out}          the same line goes on after any interruption
#
# Paths that begin with ./ or ../ are relative to this file. The model's vocabulary is data.vocab_size, the languages
# are those of the text. All options: python -m train fit --help
"""
LIST_HEAD = """\
# What is measured at every snapshot; all options of an entry are in docs/measures.md. Paths are relative to this file.
"""


def add_init_arguments(parser: ArgumentParser) -> None:
    """Options of `python -m train init`."""
    parser.add_argument("--text", nargs="+", required=True, metavar="LANG=FILE", help="text: plain, JSONL or parquet")
    parser.add_argument("--out", required=True, help="configuration to write, such as configs/mine.yaml")
    parser.add_argument("--parallel", metavar="FILE", help="translated sentences, JSONL or parquet; never trained on")
    parser.add_argument(
        "--concepts",
        nargs="+",
        default=[],
        metavar="[LANG=]FILE",
        help="concept list in one language (en, unless said) of translated text, or one for each language",
    )
    parser.add_argument("--steps", type=int | None, default=None, help="optimizer steps; null: about 4 passes")


def run_init(args: Namespace) -> None:
    """Write the files; says on stdout what was chosen, what is not measured and why, and what comes next.

    Raises:
        FileNotFoundError, ValueError: text that cannot be read, something is there already, or labelling failed.
    """
    from train.data.documents import SPLITS
    from train.data.sources import LocalText
    from train.own import sizes, text

    out, folder = Path(args.out), Path(args.out).with_suffix("")
    if out.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out {out}: a configuration is a .yaml file")
    for taken in (out, folder):
        if taken.exists():
            raise ValueError(f"--out: {taken} is there already; give another name, or remove it")
    sources = text.read_sources(args.text)
    own = text.count_text(sources)
    files = {path.resolve() for options in sources for path in LocalText(**options).files()}
    if args.parallel and Path(args.parallel).resolve() in files:
        raise ValueError(
            f"--parallel {args.parallel}: is text to train on already; leave it out, translations are told by their uid"
        )
    left_out: list[str] = []
    with new_folder(folder) as made:
        translated = args.parallel is not None or text.is_translated(own)
        labelled = label(args, sources, sorted(own), translated, made, left_out)
        excluded = [args.parallel] if args.parallel else []
        if excluded or labelled:
            text.deal_text(own, sources, [*excluded, *([f"{made}/concepts.parquet"] if labelled else [])])
        model, data, steps = sizes.choose(own, args.steps)
        kept = (document for one in own.values() for split in SPLITS for document in one.kept[split])
        text.write_texts(kept, made / "held_out.parquet")
        entries = list_analyses(sorted(own), args.parallel, translated, labelled, folder, left_out)
        write_text(made / "analyses.yaml", LIST_HEAD + dump({"analyses": relative(entries, folder)}))
    data |= {
        "sources": [{"class_path": "LocalText", "init_args": options} for options in sources],
        "exclude": [*excluded, *([f"{folder}/concepts.parquet"] if labelled else [])],
    }
    write_text(out, HEAD.format(out=out) + dump(relative(configuration(out, model, data, steps), out.parent)))
    lines = [f"{name:<10}{one.texts:>11,} texts{one.bytes:>16,} bytes to train on" for name, one in own.items()]
    lines += [
        f"model     {model['num_layers']} layers, width {model['d_model']}, vocabulary {data['vocab_size']:,}",
        f"run       {steps:,} steps of {data['batch_size']} x {data['block_size']} tokens",
        f"measured  {', '.join(entry['class_path'] for entry in entries)}",
        *(f"not       {reason}" for reason in left_out),
        f"written   {out} and {folder}/",
        f"next      python -m train fit --config {out}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def label(
    args: Namespace,
    sources: Sequence[dict[str, Any]],
    languages: list[str],
    translated: bool,
    folder: Path,
    left_out: list[str],
) -> bool:
    """Label concept sentences by `python -m analysis label`; whether there are any.

    Raises:
        ValueError: a list was given and no concept came of it, or it fits no text.
    """
    from train.own.text import may_be_labelled, read_documents, write_texts

    lists = dict(entry.split("=", 1) for entry in args.concepts if "=" in entry)
    measured = shared_languages(languages, args.parallel)
    if len(lists) < len(args.concepts) > 1:
        raise ValueError(f"--concepts {' '.join(args.concepts)}: give one list, or LANG=FILE once for each language")
    if foreign := sorted({*lists} - {*measured}):
        raise ValueError(f"--concepts: there is a list for {', '.join(foreign)}, but text in {', '.join(measured)}")
    if len(lists) > 1:
        options = ["--list", *args.concepts, "--languages", *sorted(lists)]
    elif not translated:
        if args.concepts:
            raise ValueError(
                "--concepts: one list serves translated text alone; give --parallel, or LANG=FILE for each language"
            )
        left_out.append("concept neurons: they need --parallel, or --concepts LANG=FILE for each language")
        return False
    else:
        pivot, path = next(iter(lists.items()), ("en", args.concepts[0] if args.concepts else str(CONCEPT_LIST)))
        if not args.concepts and (pivot not in measured or not CONCEPT_LIST.is_file()):
            left_out.append(
                "concept neurons: the list that ships is English; give --concepts LANG=FILE of a language of yours"
            )
            return False
        options = ["--list", path, "--pivot", pivot, "--languages", *measured]
    texts = Path(args.parallel) if args.parallel else folder / ".sentences.parquet"
    if not args.parallel:
        write_texts(filter(may_be_labelled, read_documents(sources)), texts)
    command = [sys.executable, "-P", "-m", "analysis", "label", "--texts", str(texts), "--independent", *options]
    command += ["--out", str(folder / "concepts.parquet")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if not args.parallel:
        texts.unlink()
    if done.returncode == 0:
        sys.stdout.write("".join(line for line in done.stdout.splitlines(keepends=True) if "written:" not in line))
        return True
    why = (done.stderr.strip().splitlines() or ["labelling ended without a word"])[-1].removeprefix("error: ")
    if args.concepts:
        raise ValueError(f"--concepts: {why.replace(str(texts), args.parallel or '--text')}")
    left_out.append(f"concept neurons: {why}")
    return False


def shared_languages(languages: Sequence[str], parallel: str | None) -> list[str]:
    """Those of the text that the parallel file has, all of them without one.

    Raises:
        ValueError: fewer than two.
    """
    from train.data.sources import LocalText

    if parallel is None:
        return list(languages)
    shared = sorted({*languages} & {*LocalText(path=parallel).languages()})
    if len(shared) < 2:
        raise ValueError(
            f"--parallel {parallel}: has {', '.join(shared) or 'none'} of {', '.join(languages)}; two are needed"
        )
    return shared


def list_analyses(
    languages: Sequence[str], parallel: str | None, translated: bool, labelled: bool, folder: Path, left_out: list[str]
) -> list[dict[str, Any]]:
    """Entries of the list, as far as the text allows."""
    held_out = {"texts": f"{folder}/held_out.parquet"}
    entries: list[tuple[str, dict[str, Any]]] = [("HeldOutLoss", held_out)]
    if len(languages) == 1:
        left_out.append("everything that compares languages: there is one")
    else:
        entries.append(("LanguageProbe", held_out))
        if labelled:
            entries.append(("ConceptOverlap", {"concepts": f"{folder}/concepts.parquet", "share": 0.01}))
        if parallel:
            shared = shared_languages(languages, parallel)
            entries.append(("Alignment", {"texts": parallel, "splits": [], "languages": shared}))
        elif translated:
            entries.append(("Alignment", held_out))
        else:
            left_out.append("alignment of translations: it needs --parallel")
        entries += [("Compression", held_out), ("Lape", held_out), ("ProbeSuite", held_out)]
    return [{"class_path": name, "init_args": dict(options)} for name, options in entries]


def configuration(out: Path, model: dict[str, Any], data: dict[str, Any], steps: int) -> dict[str, Any]:
    """The run; paths are those of the working folder."""
    schedule = {"base": 4}
    every = max(1, min(10, steps // 50))
    callbacks: list[dict[str, Any]] = [
        {"class_path": "callbacks.lock.RunLock"},
        {"class_path": "callbacks.snapshots.SnapshotWriter", "init_args": {"schedule": schedule}},
        {
            "class_path": "callbacks.analyses.AnalysisCallback",
            "init_args": {"analyses": f"{out.with_suffix('')}/analyses.yaml", "schedule": schedule},
        },
        {"class_path": "callbacks.tracking.Tracker", "init_args": {"every_n_steps": every}},
        {"class_path": "callbacks.resume.ResumeCheckpoint", "init_args": {"every_n_minutes": 15, "keep": 2}},
    ]
    paths = {"tokenizer": f"runs/{out.stem}-tokenizer", "cache": "runs/cache"}
    trainer = {
        "default_root_dir": f"runs/{out.stem}",
        "accelerator": "auto",
        "devices": 1,
        "precision": None,
        "max_steps": steps,
        "gradient_clip_val": 1.0,
        "val_check_interval": max(1, steps // 4),
        "check_val_every_n_epoch": None,
        "log_every_n_steps": every,
        "callbacks": callbacks,
    }
    return {"seed_everything": 1, "model": model, "data": paths | data | {"mixing": {"alpha": 0.3}}, "trainer": trainer}


def relative(content: Any, folder: Path, is_path: bool = False) -> Any:
    """`content` with its relative paths, which are seen from the working folder, as `./` or `../` from `folder`."""
    if isinstance(content, dict):
        return {key: relative(value, folder, is_path or key in PATHS) for key, value in content.items()}
    if isinstance(content, list):
        return [relative(value, folder, is_path) for value in content]
    if not is_path or not isinstance(content, str) or os.path.isabs(content):
        return content
    seen = os.path.relpath(content, folder)
    return seen if seen.startswith("../") else f"./{seen}"


def dump(content: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return text
