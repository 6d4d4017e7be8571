"""Records of local text files and what their columns mean, with errors that name the file and the line.

Training text and measured text are read by this file, so that a file means one thing to both. Parquet is read batch by
batch, JSONL and plain text line by line, so a file may be larger than memory. Compressed JSONL and text (.gz) are read
as they are.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

PARQUET = (".parquet", ".pq")
JSONL = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz")
PLAIN = (".txt", ".txt.gz", ".text")

SHARD_BYTES = 64 * 2**20
"""Uncompressed size of the row groups of a parquet file that make one shard."""

LANGUAGE_COLUMNS = ("lang", "language")
"""The first that is there counts."""
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*")
SEGMENT_COLUMNS = ("uid", "doc", "sent_id")
SPLIT_NAMES = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
"""What a split column may say, and what it means."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Clone:
    """A language that is another one in shifted token ids; what is read in it is text of its original."""

    of: str
    shift: int
    """Added to the id of every token that is not special."""


def expand(pattern: str | Path) -> list[Path]:
    """Files of a path or glob pattern, sorted.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: an empty file, a folder, or a kind of file that is not known.
    """
    pattern = str(pattern)
    there = os.path.exists(pattern)  # the name of a file may hold [brackets]
    paths = [Path(pattern)] if there else sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    if not paths:
        raise FileNotFoundError(f"{pattern}: no such file")
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path}: is a folder; name the files, for example {path}/*.parquet")
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: the file is empty")
        kind_of(path)
    return paths


def kind_of(path: Path) -> str:
    """`parquet`, `jsonl` or `plain` by the file's name."""
    for kind, endings in (("parquet", PARQUET), ("jsonl", JSONL), ("plain", PLAIN)):
        if path.name.lower().endswith(endings):
            return kind
    raise ValueError(f"{path}: not a known kind of text file; known are {', '.join((*PARQUET, *JSONL, *PLAIN))}")


def columns_of(path: Path) -> list[str]:
    """Column names: of the schema (parquet), of the first record (JSONL), or `text` alone (plain text)."""
    kind = kind_of(path)
    if kind == "parquet":
        return open_parquet(path).schema_arrow.names
    if kind == "plain":
        return ["text"]
    for record, _ in read_records(path):
        return list(record)
    raise ValueError(f"{path}: no record in this file")


def segment_key(record: Mapping[str, object]) -> str:
    """What names a text in all languages: `uid`, else `doc` with `sent_id`, else nothing."""
    if record.get("uid") is not None:
        return str(record["uid"])
    if record.get("sent_id") is None:
        return ""
    return "/".join(str(record[name]) for name in ("doc", "sent_id") if record.get(name) is not None)


def wide_languages(names: Sequence[str], text_column: str = "text") -> list[str]:
    """Columns named by two letters, if the file has no text column; `id` is Indonesian only beside a `uid`."""
    if text_column in names:
        return []
    return [name for name in names if re.fullmatch(r"[a-z]{2}", name) and (name != "id" or "uid" in names)]


def open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from error


def row_group_runs(path: Path) -> Iterator[tuple[int, ...]]:
    """Row groups of a parquet file in runs of about `SHARD_BYTES`."""
    metadata = open_parquet(path).metadata
    run: list[int] = []
    size = 0
    for group in range(metadata.num_row_groups):
        run.append(group)
        size += metadata.row_group(group).total_byte_size
        if size >= SHARD_BYTES:
            yield tuple(run)
            run, size = [], 0
    if run:
        yield tuple(run)


def check_text_column(path: Path, column: str) -> None:
    """Raise ValueError unless a parquet file's column holds strings (JSONL is checked line by line)."""
    if kind_of(path) != "parquet":
        return
    schema = open_parquet(path).schema_arrow
    if column not in schema.names:
        raise ValueError(f"{path}: no column {column!r}; columns are {', '.join(schema.names)}")
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise ValueError(f"{path}: column {column!r} holds {kind}, not text; name the text column of this file")


def check_text(text: object, place: str) -> str:
    """The text itself, if it is one that can be tokenised and written.

    Raises:
        ValueError: another type, or a text with half of a surrogate pair (as truncated JSON escapes leave it).
    """
    if not isinstance(text, str):
        raise ValueError(f"{place} holds {type(text).__name__}, not text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}: character {error.start} is half a surrogate pair, which is no text") from None
    return text


def refuse_unknown(path: str | Path, what: str, asked: Iterable[str], found: Collection[str]) -> None:
    """Raise ValueError for the first of what is asked for that a file does not have."""
    for name in asked:
        if name not in found:
            raise ValueError(f"{path}: no {what} {name!r}; it has {', '.join(sorted(found)) or 'none'}")


def refuse_repeated(where: str | Path, option: str, given: Sequence[str]) -> None:
    """Raise ValueError for the first of what is given that is given twice and would count double."""
    for place, name in enumerate(given):
        if name in given[:place]:
            raise ValueError(f"{where}: {option}={list(given)}: {name!r} is listed twice")


def distinct_values(path: Path, column: str) -> dict[Any, str]:
    """Values of a column, each with the place where it was first seen."""
    values: dict[Any, str] = {}
    if kind_of(path) == "parquet":
        row = 0
        for batch in open_parquet(path).iter_batches(columns=[column]):
            for value in batch.column(0).unique().to_pylist():
                values.setdefault(value, f"{path}: rows from {row}")
            row += batch.num_rows
    else:
        for record, place in read_records(path):
            values.setdefault(str(record.get(column)) if column in record else None, place)
    return values


def read_records(
    path: Path, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None
) -> Iterator[tuple[Record, str]]:
    """Records with their place (`file:line`, or `file: row n`), in order.

    Args:
        columns: only these of a parquet file (None: all).
        row_groups: only these of a parquet file (None: all).

    Raises:
        ValueError: naming file and line, for a line that is not a JSON object or not UTF-8, or damaged parquet.
    """
    kind = kind_of(path)
    if kind == "parquet":
        yield from _read_parquet(path, columns, row_groups)
    else:
        yield from _read_lines(path, plain=kind == "plain")


def _read_parquet(
    path: Path, columns: Sequence[str] | None, row_groups: Sequence[int] | None
) -> Iterator[tuple[Record, str]]:
    file = open_parquet(path)
    groups = range(file.num_row_groups) if row_groups is None else row_groups
    row = sum(file.metadata.row_group(group).num_rows for group in range(min(groups, default=0)))
    try:
        for batch in file.iter_batches(batch_size=4096, row_groups=list(groups), columns=columns):
            for record in batch.to_pylist():
                yield record, f"{path}: row {row}"
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged after row {row} ({str(error).splitlines()[0]})") from error


def _read_lines(path: Path, *, plain: bool) -> Iterator[tuple[Record, str]]:
    number = 0
    with _open_text(path) as file:
        while True:
            number += 1
            try:
                line = file.readline()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason})") from error
            except (EOFError, OSError) as error:
                raise ValueError(f"{path}:{number}: not readable ({error})") from error
            if not line:
                return
            if not line.strip():
                continue
            if plain:
                yield {"text": line.rstrip("\r\n")}, f"{path}:{number}"
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno})") from error
            except RecursionError:
                raise ValueError(f"{path}:{number}: brackets are nested too deep for a record") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}:{number}: a JSON object is needed, this is {type(record).__name__}")
            yield record, f"{path}:{number}"


def _open_text(path: Path) -> TextIO:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")
