"""What there is of own text: counted by language, dealt to splits, and what the analyses read of it written down.

Text is dealt to splits by the source that trains on it (`train.data.sources.LocalText`), so what is written as held out
is what training holds out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from babelscope.records import LANGUAGE_CODE
from train.data.decontamination import read_exclusion
from train.data.documents import SPLITS, Document, assign_split, stream_documents
from train.data.sources import LocalText

HELD_OUT_TEXTS = 200
"""Texts of each language and of each held-out split that are wanted; a tenth of the text at most."""
MOST_TEXTS = 2000
"""Texts of a split and language that are written for the analyses."""
FEWEST_TEXTS = 20
ALIGNED_TEXTS = 100
"""Held-out texts that must be there in all languages before they count as translations to be measured on."""
LABELLED_SHARE = 0.3
"""Share of the training texts among which concept sentences are sought: what is labelled is not trained on."""
SCHEMA = pa.schema([("lang", pa.string()), ("uid", pa.string()), ("split", pa.string()), ("text", pa.string())])


@dataclass
class OwnText:
    """The text of one language."""

    texts: int = 0
    """Of all splits."""
    bytes: int = 0
    """Of the training split."""
    kept: dict[str, list[Document]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    """Split to texts for the analyses, the first of the files."""


def read_sources(given: Sequence[str]) -> list[dict[str, Any]]:
    """Options of `LocalText` for `LANG=FILE` entries, and for every entry that is a file of several languages.

    Raises:
        ValueError: not a language code, or a language named twice.
    """
    by_language: dict[str, str] = {}
    found: list[dict[str, Any]] = []
    for entry in given:
        language, equals, path = entry.partition("=")
        if not equals:
            found.append({"path": entry})
        elif not LANGUAGE_CODE.fullmatch(language):
            raise ValueError(f"--text {entry}: {language!r} is not a language code, such as en")
        elif language in by_language:
            raise ValueError(f"--text names {language} twice; give a pattern ({language}='texts/{language}-*.txt')")
        else:
            by_language[language] = path
    return [*([{"files_by_language": by_language}] if by_language else []), *found]


def read_documents(sources: Sequence[Mapping[str, Any]]) -> Iterator[Document]:
    """All documents of sources, given as options of `LocalText`."""
    made = [LocalText(**options) for options in sources]
    return stream_documents(made, sorted({language for source in made for language in source.languages()}))


def count_text(sources: list[dict[str, Any]]) -> dict[str, OwnText]:
    """What each language has, by language; sets in `sources` the shares that are held out.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be read, or a language with too little text.
    """
    found: dict[str, OwnText] = {}
    for document in read_documents(sources):
        found.setdefault(document.language, OwnText()).texts += 1
    poorest = min(found, key=lambda language: found[language].texts, default=None)
    if poorest is None or found[poorest].texts < FEWEST_TEXTS:
        has = f"{poorest} has {found[poorest].texts} texts" if poorest else "there is no text"
        raise ValueError(f"--text: {has}; at least {FEWEST_TEXTS} of each language (lines of a text file) are needed")
    share = round(min(0.1, max(0.01, HELD_OUT_TEXTS / found[poorest].texts)), 3)
    for options in sources:
        options |= {"valid_share": share, "test_share": share}
    found = dict(sorted(found.items()))
    deal_text(found, sources)
    return found


def deal_text(found: Mapping[str, OwnText], sources: Sequence[Mapping[str, Any]], exclude: Sequence[str] = ()) -> None:
    """Deal the text of each language to splits, without what training leaves out (`data.exclude`).

    Raises:
        ValueError: a language without text in a split.
    """
    exclusion = read_exclusion(exclude)
    for own in found.values():
        own.bytes, own.kept = 0, {split: [] for split in SPLITS}
    for document in read_documents(sources):
        trained_on = document.split == "train"
        if trained_on and exclusion.rule(document) is not None:
            continue
        own = found[document.language]
        own.bytes += len(document.text.encode()) if trained_on else 0
        if len(own.kept[document.split]) < MOST_TEXTS:
            own.kept[document.split].append(document)
    for language, own in found.items():
        if missing := [split for split in SPLITS if not own.kept[split]]:
            less = f" once {' and '.join(exclude)} are left out" if exclude else ""
            raise ValueError(
                f"--text: {language} has no texts of the split {missing[0]}{less}; state {', '.join(SPLITS)} in the "
                "file, or leave the column out, or give more text"
            )


def may_be_labelled(document: Document) -> bool:
    """Whether concept sentences are sought here: in all that is held out, and in `LABELLED_SHARE` of the rest."""
    drawn = assign_split(f"labelled {document.key or document.text}", LABELLED_SHARE, 0.0) == "valid"
    return document.split != "train" or drawn


def is_translated(own: Mapping[str, OwnText]) -> bool:
    """Whether enough of the held-out texts share their key in all languages."""
    keys = [
        {document.key for split in ("valid", "test") for document in text.kept[split] if document.key}
        for text in own.values()
    ]
    return len(keys) > 1 and len(set.intersection(*keys)) >= ALIGNED_TEXTS


def write_texts(documents: Iterable[Document], path: Path) -> None:
    """Long parquet: lang, uid (null where there is none), split, text."""
    batch: list[dict[str, str | None]] = []
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for document in documents:
            key, split = document.key or None, document.split
            batch.append({"lang": document.language, "uid": key, "split": split, "text": document.text})
            if len(batch) == 4096:
                writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
