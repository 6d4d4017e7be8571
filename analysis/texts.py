"""Texts by language from a file, with their keys and splits: what every measure reads.

Two layouts, told apart by their columns:

    long   (parquet or JSONL)   lang (else language), text, and optionally uid (or doc with sent_id), split
    wide   (parquet)            uid, one column per language (null = no translation), and optionally split

The same key in two languages marks translations of each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "valid", "test")
LANGUAGE_COLUMNS = ("lang", "language")
"""The first that is there counts, here and in `train.data.sources`, so that a file means one thing to both."""
RECORDED = frozenset({"uid", "doc", "sent_id", "split", "source", "text", "n_langs", *LANGUAGE_COLUMNS})
"""Columns that are never languages of a wide table."""


@dataclass(frozen=True, slots=True)
class Clone:
    """A language that a model knows as another one in shifted token ids; what it reads is text of its original."""

    of: str
    shift: int
    """Added to the id of every token that is not special."""


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
        split = record.get("split")
        if split is not None:
            seen_splits.add(str(split))
        elif splits:
            raise ValueError(f"{path}, {line}: no split given, but only {', '.join(splits)} is asked for")
        if not splits or split in splits:
            for language, text in _languages_of(path, line, record):
                found.setdefault(language, []).append(text)
        else:
            for language, _ in _languages_of(path, line, record):
                found.setdefault(language, [])
    absent = [split for split in splits if split not in seen_splits]
    if absent:
        raise ValueError(f"{path}: no split {absent[0]!r}; it has {', '.join(sorted(seen_splits)) or 'none'}")
    for name, clone in cloned(languages, clones).items():
        if clone.of in found:
            found[name] = [Text(text.key, ClonedText(text.text, clone.shift)) for text in found[clone.of]]
    for language in languages:
        if language not in found:
            raise ValueError(f"{path}: no language {language!r}; it has {', '.join(sorted(found)) or 'none'}")
    chosen = {language: found[language] for language in (languages or sorted(found))}
    for language, texts in chosen.items():
        if not texts:
            raise ValueError(f"{path}: no texts in {language!r} for the splits {', '.join(splits)}")
    if not chosen:
        raise ValueError(f"{path}: the file holds no texts")
    return chosen


def read_records(path: str | Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Records of a parquet or JSONL file, each with its place ("line 3" or "row 3") for error messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither format, unreadable, empty, or a line that is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; texts are a parquet or JSONL file")
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: not a readable parquet file: {' '.join(str(error).split())}") from None
        if table.num_rows == 0:
            raise ValueError(f"{path}: the file holds no texts")
        for number, record in enumerate(table.to_pylist(), start=1):
            yield f"row {number}", record
    elif path.suffix in (".jsonl", ".json"):
        number = 0
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield f"line {number}", _parse_line(path, number, raw)
        if number == 0:
            raise ValueError(f"{path}: the file holds no texts")
    else:
        raise ValueError(f"{path}: unknown format {path.suffix!r}; use .parquet or .jsonl")


def _parse_line(path: Path, number: int, raw: bytes) -> Mapping[str, object]:
    try:
        record = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}, line {number}: brackets are nested too deep for a record") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(record).__name__}")
    return record


def _languages_of(path: Path, line: str, record: Mapping[str, object]) -> list[tuple[str, Text]]:
    """The (language, text) pairs of one record: one of a long table, several of a wide one."""
    key = record_key(record) or line
    column = language_column(record)
    if column is not None and record[column] is not None:
        language = record[column]
        if not isinstance(language, str) or not language:
            raise ValueError(f"{path}, {line}: language is {language!r}, expected an ISO 639-1 code")
        return [(language, Text(key, _checked(path, line, "text", record.get("text"))))]
    columns = [column for column in record if column not in RECORDED]
    if "uid" not in record or not columns:
        raise ValueError(
            f"{path}, {line}: expected the columns language and text, or uid and one column per language; "
            f"got {', '.join(map(str, record))}"
        )
    return [
        (column, Text(key, _checked(path, line, column, record[column])))
        for column in columns
        if record[column] is not None
    ]


def language_column(record: Mapping[str, object]) -> str | None:
    """The column that names a record's language: `lang`, else `language`; None for a wide table."""
    return next((column for column in LANGUAGE_COLUMNS if column in record), None)


def record_key(record: Mapping[str, object]) -> str | None:
    """`uid`, else `doc` and `sent_id` together, else None."""
    if record.get("uid") is not None:
        return str(record["uid"])
    parts = [str(record[column]) for column in ("doc", "sent_id") if record.get(column) is not None]
    return "/".join(parts) or None


def _checked(path: Path, line: str, column: str, text: object) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{path}, {line}: {column!r} must be a text, got {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{path}, {line}: {column!r} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path}, {line}: {column!r}: character {error.start} is half a surrogate pair, which is no text"
        ) from None
    return text
