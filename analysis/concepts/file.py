"""The concept file: labelled segments in long format, with the lexicon beside it.

    <out>                 .parquet (zstd) or .jsonl: concept, language, uid, text, label, split, weak, match, half,
                          group
    <out>.lexicon.json    settings; lexicon: concept -> language -> entries; cells: counts and support; dropped: why

`label` is 1 or 0. `weak` marks a positive in whose translation no word of the concept was found (null: not examined).
`match` is the uid of the positive that a negative was chosen for. `half`, 0 or 1, is the sentence's for every concept
and language: measures that choose units on one part of the sentences and look at them on the other go by it. Concepts
of one `group` depend on each other. The lexicon is written first: a concept file never stands without it. Written by
analysis/concepts/labelling.py, read by analysis/concepts/dataset.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.concepts.aligned import AlignedText
from analysis.concepts.halves import half_of
from analysis.concepts.matching import Groups
from babelscope.files import write_file, write_text

SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("language", pa.string()),
        ("uid", pa.string()),
        ("text", pa.string()),
        ("label", pa.int8()),
        ("split", pa.string()),
        ("weak", pa.bool_()),
        ("match", pa.string()),
        ("half", pa.int8()),
        ("group", pa.string()),
    ]
)


# a text serves many concepts: the dictionary of a column must hold all texts, or it is given up half-way
PARQUET = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 28}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One concept in one language."""

    concept: str
    language: str
    available: int
    """Positives before the cap."""
    positives: int
    negatives: int
    support: float | None
    """Share of positives in which a word of the lexicon occurs; None in the pivot language and where there are too
    few positives.
    """
    support_floor: float | None
    """The same for sentences that share no concept: what the search finds by chance."""
    false_hits: float | None
    """Share of negatives in which a word of the lexicon occurs."""


@dataclass(frozen=True)
class Labelling:
    """What labelling gives."""

    table: pa.Table
    """Columns as `SCHEMA`."""
    cells: tuple[Cell, ...]
    lexicon: Mapping[str, Mapping[str, Sequence[str]]]
    """Concept -> language -> entries (analysis/concepts/lexicon.py tells how to read them)."""
    dropped: Mapping[str, str]
    """Concepts that were left out, and why."""


def concept_table(
    text: AlignedText,
    groups: Mapping[str, Groups],
    weak: Mapping[str, Mapping[str, frozenset[int]]],
    families: Mapping[str, str],
) -> pa.Table:
    """The long table of all concepts and languages.

    Args:
        groups: concept to its positives and negatives.
        families: concept to the name of the group of concepts that it belongs to.
        weak: concept -> language -> weak positives; a language that is absent was not examined.
    """
    uids, splits = pa.array(text.uids, pa.string()), pa.array(text.splits, pa.string())
    halves = pa.array([half_of(uid) for uid in text.uids], pa.int8())
    columns = {language: pa.array(texts, pa.string()) for language, texts in text.texts.items()}
    parts = []
    for concept, found in groups.items():
        for column, language in enumerate(text.languages):
            positives, negatives = found.in_language(column)
            sizes = [len(group) for group in negatives]
            rows = pa.array(np.concatenate([positives, *negatives]))
            matches = pa.array(np.repeat(positives, sizes))
            examined = weak[concept].get(language)
            marks = [None if examined is None else int(row) in examined for row in positives]
            parts.append(
                pa.table(
                    [
                        pa.repeat(concept, len(rows)),
                        pa.repeat(language, len(rows)),
                        uids.take(rows),
                        columns[language].take(rows),
                        pa.array([1] * len(positives) + [0] * sum(sizes), pa.int8()),
                        splits.take(rows),
                        pa.array(marks + [None] * sum(sizes), pa.bool_()),
                        pa.concat_arrays([pa.nulls(len(positives), pa.string()), uids.take(matches)]),
                        halves.take(rows),
                        pa.repeat(families[concept], len(rows)),
                    ],
                    schema=SCHEMA,
                )
            )
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()


def lexicon_path(out: str | Path) -> Path:
    """Where the lexicon of the concept file `out` lies."""
    return Path(out).with_name(Path(out).name + ".lexicon.json")


def check_suffix(out: str | Path) -> None:
    """Raises `ValueError` for a name whose format is not known: worth asking before the work, not after."""
    if Path(out).suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"{out}: unknown format {Path(out).suffix!r}; a concept file is .parquet or .jsonl")
    if Path(out).is_dir():
        raise ValueError(f"{out}: is a folder; a concept file cannot be written in its place")
    if blocking := next((parent for parent in Path(out).parents if parent.exists() and not parent.is_dir()), None):
        raise ValueError(f"{out}: {blocking} is a file, so nothing can be written below it")


def write_labelling(labelling: Labelling, out: str | Path, settings: Mapping[str, object]) -> None:
    """Writes the concept file and its lexicon, each whole or not at all.

    Raises:
        ValueError: the suffix of `out` is neither .parquet nor .jsonl.
    """
    out = Path(out)
    check_suffix(out)
    content = {
        "settings": dict(settings),
        "lexicon": {
            concept: {language: list(entries) for language, entries in languages.items()}
            for concept, languages in labelling.lexicon.items()
        },
        "cells": [asdict(cell) for cell in labelling.cells],
        "dropped": dict(labelling.dropped),
    }
    write_text(lexicon_path(out), json.dumps(content, ensure_ascii=False, indent=1, default=str))
    if out.suffix == ".parquet":
        write_file(out, lambda file: pq.write_table(labelling.table, file, **PARQUET))
    else:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in labelling.table.to_pylist())
        write_text(out, lines)


def format_summary(labelling: Labelling) -> str:
    """A table for people: per concept the positives and negatives of the poorest language, support and its floor."""
    lines = [f"{'concept':<16} {'positives':>9} {'negatives':>9} {'support':>8} {'floor':>6}  weakest"]
    for concept in labelling.lexicon:
        cells = [cell for cell in labelling.cells if cell.concept == concept]
        supported = [cell for cell in cells if cell.support is not None]
        weakest = min(supported, key=lambda cell: cell.support or 0.0, default=None)
        lines.append(
            f"{concept:<16} {min(cell.positives for cell in cells):>9} {min(cell.negatives for cell in cells):>9}"
            f" {_mean(cell.support for cell in cells):>8} {_mean(cell.support_floor for cell in cells):>6}"
            f"  {f'{weakest.language} {weakest.support:.2f}' if weakest else '-'}"
        )
    lines.append(f"{len(labelling.lexicon)} concepts, {labelling.table.num_rows:,} labelled rows")
    if labelling.dropped:
        reasons = "; ".join(f"{name} {reason}" for name, reason in list(labelling.dropped.items())[:3])
        lines.append(
            f"{len(labelling.dropped)} concepts left out: {reasons}{' ...' if len(labelling.dropped) > 3 else ''}"
        )
    return "\n".join(lines)


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.2f}" if known else "-"
