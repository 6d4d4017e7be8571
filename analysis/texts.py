"""Texts by language from a file, with their keys and splits: what every measure reads.

Two layouts, told apart by their columns:

    long   lang (else language), text, and optionally uid (or doc with sent_id), split
    wide   one column per language (null = no translation), and optionally uid, split

The same key in two languages marks translations of each other; rows of a wide table without uid are keys of their own.
Kinds of file and the names of splits are those of training text (`babelscope.records`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from babelscope import records
from babelscope.files import file_stamp
from babelscope.records import (
    LANGUAGE_COLUMNS,
    SPLIT_NAMES,
    Clone,
    check_text,
    kind_of,
    refuse_unknown,
    segment_key,
    wide_languages,
)

RECORDED = frozenset({"uid", "doc", "sent_id", "split", "source", "text", "n_langs", *LANGUAGE_COLUMNS})
"""Columns that are never languages of a wide table."""


class ClonedText(str):
    """A text in a cloned language. It equals no plain text, so nothing kept by text confuses the two."""

    shift: int

    def __new__(cls, text: str, shift: int) -> ClonedText:
        made = super().__new__(cls, text)
        made.shift = shift
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClonedText) and other.shift == self.shift and str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((str.__hash__(self), self.shift))

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]
        return str(self), self.shift


def cloned(languages: Sequence[str], clones: Mapping[str, Clone]) -> dict[str, Clone]:
    """The clones to be read when `languages` are asked for (none: all)."""
    return {name: clone for name, clone in clones.items() if not languages or name in languages}


@dataclass(frozen=True, slots=True)
class Text:
    """One text in one language."""

    key: str
    """The same for translations of each other."""
    text: str


def read_texts(
    path: str | Path,
    *,
    languages: Sequence[str] = (),
    splits: Sequence[str] = (),
    clones: Mapping[str, Clone] = MappingProxyType({}),
) -> dict[str, list[Text]]:
    """Texts of each language, in the order of the file.

    Args:
        languages: ISO 639-1 codes; none means all that the file has, sorted, and their clones.
        splits: of `train`, `valid`, `test`; none means all.
        clones: of the model that will read the texts (`Snapshot.clones`): their texts are those of the originals.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed file (naming file and line), a language or split that the file does not have, or a
            language without texts.
    """
    path = Path(path)
    found: dict[str, list[Text]] = {}
    seen_splits: set[str] = set()
    for line, record in read_records(path):
        split = split_of(record)
        if split:
            seen_splits.add(split)
        elif splits:
            raise ValueError(f"{path}, {line}: no split given, but only {', '.join(splits)} is asked for")
        for language, text in _languages_of(path, line, record):
            of_language = found.setdefault(language, [])
            if not splits or split in splits:
                of_language.append(text)
    refuse_unknown(path, "split", splits, seen_splits)
    for name, clone in cloned(languages, clones).items():
        if clone.of in found:
            found[name] = [Text(text.key, ClonedText(text.text, clone.shift)) for text in found[clone.of]]
    refuse_unknown(path, "language", languages, found)
    chosen = {language: found[language] for language in (languages or sorted(found))}
    for language, texts in chosen.items():
        if not texts:
            raise ValueError(f"{path}: no texts in {language!r} for the splits {', '.join(splits)}")
    if not chosen:
        raise ValueError(f"{path}: the file holds no texts")
    return chosen


def shared_texts(
    path: str, languages: Sequence[str], splits: Sequence[str], clones: Mapping[str, Clone]
) -> dict[str, list[Text]]:
    """`read_texts`, once for all analyses of a list and all snapshots, until the file changes."""
    return _texts(path, file_stamp(path), tuple(languages), tuple(splits), tuple(clones.items()))


@lru_cache(maxsize=4)
def _texts(
    path: str,
    stamp: tuple[int, int] | None,
    languages: tuple[str, ...],
    splits: tuple[str, ...],
    clones: tuple[tuple[str, Clone], ...],
) -> dict[str, list[Text]]:
    return read_texts(path, languages=languages, splits=splits, clones=dict(clones))


def text_sizes(path: str) -> dict[tuple[str, str], list[int]]:
    """UTF-8 bytes of the texts of every language and split of a file, read once until it changes; raises as
    `read_texts`."""
    return _sizes(path, file_stamp(path))


@lru_cache(maxsize=4)
def _sizes(path: str, stamp: tuple[int, int] | None) -> dict[tuple[str, str], list[int]]:
    sizes: dict[tuple[str, str], list[int]] = {}
    for line, record in read_records(path):
        for language, text in _languages_of(Path(path), line, record):
            sizes.setdefault((language, split_of(record)), []).append(len(text.text.encode()))
    return sizes


def read_records(path: str | Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Records of a file, each with its place ("line 3" or "row 3") for error messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown kind of file, unreadable, empty, or a line that is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; texts are a parquet or JSONL file")
    if kind_of(path) == "plain":
        raise ValueError(f"{path}: plain text names no language; texts are a parquet or JSONL file")
    parquet, place = kind_of(path) == "parquet", ""
    for number, (record, place) in enumerate(records.read_records(path), start=1):
        yield f"row {number}" if parquet else f"line {place.rpartition(':')[2]}", record
    if not place:
        raise ValueError(f"{path}: the file holds no texts")


def _languages_of(path: Path, line: str, record: Mapping[str, object]) -> list[tuple[str, Text]]:
    """The (language, text) pairs of one record: one of a long table, several of a wide one."""
    key = segment_key(record) or line
    column = language_column(record)
    if column is not None and record[column] is not None:
        language = record[column]
        if not isinstance(language, str) or not language:
            raise ValueError(f"{path}, {line}: language is {language!r}, expected an ISO 639-1 code")
        return [(language, Text(key, _checked(path, line, "text", record.get("text"))))]
    columns = translations(record)
    if not columns:
        raise ValueError(
            f"{path}, {line}: expected the columns language and text, or one column per language; "
            f"got {', '.join(map(str, record))}"
        )
    return [
        (column, Text(key, _checked(path, line, column, record[column])))
        for column in columns
        if record[column] is not None
    ]


def split_of(record: Mapping[str, object]) -> str:
    """`train`, `valid` or `test` under any of its names, another word as it is; empty where none is stated."""
    split = record.get("split")
    return "" if split is None else SPLIT_NAMES.get(str(split), str(split))


def translations(record: Mapping[str, object]) -> list[str]:
    """Columns of a wide record that are languages: beside a `uid` all that are not known to be something else."""
    if "uid" in record:
        return [column for column in record if column not in RECORDED]
    return wide_languages(list(record))


def language_column(record: Mapping[str, object]) -> str | None:
    """The column that names a record's language: `lang`, else `language`; None for a wide table."""
    return next((column for column in LANGUAGE_COLUMNS if column in record), None)


def _checked(path: Path, line: str, column: str, given: object) -> str:
    text = check_text(given, f"{path}, {line}: {column!r}")
    if not text.strip():
        raise ValueError(f"{path}, {line}: {column!r} is empty")
    return text
