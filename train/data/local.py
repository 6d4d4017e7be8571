"""Text on disk: parquet, JSONL or plain text, in long, wide or one-file-per-language layout.

Named in YAML as `train.data.sources.LocalText`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from train.data.documents import SPLIT_NAMES, Document, Shard, TextSource, assign_split, check_shares
from train.data.records import (
    Record,
    check_text_column,
    columns_of,
    distinct_values,
    expand,
    kind_of,
    open_parquet,
    read_records,
)

LANGUAGE_COLUMNS = ("lang", "language")
KEY_COLUMNS = ("uid", "doc", "id")
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*")
SHARD_BYTES = 64 * 2**20
"""Uncompressed size of the row groups of a parquet file that make one shard."""


@dataclass
class LocalText(TextSource):
    """Parquet, JSONL or plain text (one document a line) on disk.

    Three layouts: *long*, with a column of languages; *wide*, one column per language in rows of translations; one
    file or more *per language*. Long or wide is decided by whether the text column is there.
    """

    path: str | None = None
    """File or glob pattern of a long or wide file."""
    files_by_language: dict[str, str] | None = None
    """Instead of `path`: file or glob pattern for each language."""
    text_column: str = "text"
    language_column: str | None = None
    """Default: `lang` or `language`."""
    split_column: str = "split"
    """Used if it is there: train, valid (validation, dev) or test."""
    key_column: str | None = None
    """What translations of one text have in common, for splits by hash. Default: `uid`, `doc`, `id`, else the text."""
    valid_share: float = 0.01
    """Share of the documents for validation where the data states no split."""
    test_share: float = 0.01
    _languages: tuple[str, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.files_by_language is None):
            raise ValueError("LocalText: give either path or files_by_language")
        check_shares(self.valid_share, self.test_share)

    def files(self) -> list[Path]:
        return [path for path, _ in self._files()]

    def settings(self) -> dict:
        return {
            "kind": "local",
            "languages": [language for _, language in self._files()],
            "text_column": self.text_column,
            "language_column": self.language_column,
            "split_column": self.split_column,
            "key_column": self.key_column,
            "shares": [self.valid_share, self.test_share],
        }

    def languages(self) -> tuple[str, ...]:
        if self._languages is None:
            if self.files_by_language is not None:
                found = set(self.files_by_language)
            else:
                found = set().union(*(self._languages_of(path) for path in self.files()))
            self._languages = tuple(sorted(found))
        return self._languages

    def shards(self, languages: Collection[str]) -> list[Shard]:
        shards = []
        for path, language in self._files():
            if language and language not in languages:
                continue
            if kind_of(path) == "parquet":
                shards += [Shard(str(path), language, groups) for groups in _row_groups(path)]
            else:
                shards.append(Shard(str(path), language))
        return shards

    def read(self, shard: Shard, languages: Collection[str]) -> Iterator[Document]:
        path = Path(shard.path)
        names = columns_of(path)
        wide = self._wide_languages(names) if not shard.language else []
        if wide:
            texts = {column: column for column in wide if column in languages}
        else:
            texts = {self.text_column: ""}
        for column in texts:
            check_text_column(path, column)
        language_column = None if shard.language or wide else self._language_column(path, names)
        key_column = self.key_column or next((name for name in KEY_COLUMNS if name in names), None)
        columns = [*texts, *filter(None, (language_column, key_column))]
        columns += [self.split_column] if self.split_column in names else []
        for record, place in read_records(path, columns, shard.part or None):
            for column, language in texts.items():
                language = language or shard.language or self._language_of(record, language_column, place)
                if language not in languages:
                    continue
                text = self._text_of(record, column, place, optional=bool(wide))
                if text is not None and text.strip():
                    yield Document(language, text, self._split_of(record, key_column, text, place))

    def _files(self) -> list[tuple[Path, str]]:
        """Files with their language, which is empty where the file itself states it."""
        if self.path is not None:
            return [(path, "") for path in expand(self.path)]
        assert self.files_by_language is not None
        return [
            (path, language) for language, pattern in sorted(self.files_by_language.items()) for path in expand(pattern)
        ]

    def _languages_of(self, path: Path) -> set[str]:
        names = columns_of(path)
        if wide := self._wide_languages(names):
            return set(wide)
        column = self._language_column(path, names)
        values = distinct_values(path, column)
        return {self._language_of({column: value}, column, place) for value, place in values.items()}

    def _wide_languages(self, names: Sequence[str]) -> list[str]:
        """Columns named by two letters, if the file has no text column; `id` is Indonesian only beside a `uid`."""
        if self.text_column in names:
            return []
        return [name for name in names if re.fullmatch(r"[a-z]{2}", name) and (name != "id" or "uid" in names)]

    def _language_column(self, path: Path, names: Sequence[str]) -> str:
        if self.language_column:
            if self.language_column not in names:
                raise ValueError(f"{path}: no column {self.language_column!r}; columns are {', '.join(names)}")
            return self.language_column
        for name in LANGUAGE_COLUMNS:
            if name in names:
                return name
        raise ValueError(
            f"{path}: no column of languages ({' or '.join(LANGUAGE_COLUMNS)}); columns are {', '.join(names)}; "
            "set language_column, or files_by_language if the file has one language"
        )

    def _language_of(self, record: Record, column: str | None, place: str) -> str:
        language = record.get(column) if column else None
        if not isinstance(language, str) or not LANGUAGE_CODE.fullmatch(language):
            raise ValueError(f"{place}: {language!r} in column {column!r} is not a language code")
        return language

    def _text_of(self, record: Record, column: str, place: str, *, optional: bool) -> str | None:
        """The text; None where a wide row lacks this translation."""
        if column not in record and not optional:
            raise ValueError(f"{place}: no field {column!r}; fields are {', '.join(record)}")
        text = record.get(column)
        if text is None and optional:
            return None
        if not isinstance(text, str):
            raise ValueError(f"{place}: field {column!r} holds {type(text).__name__}, not text")
        return text

    def _split_of(self, record: Record, key_column: str | None, text: str, place: str) -> str:
        stated = record.get(self.split_column)
        if stated is not None:
            if stated not in SPLIT_NAMES:
                raise ValueError(f"{place}: split {stated!r} is none of {', '.join(SPLIT_NAMES)}")
            return SPLIT_NAMES[stated]
        key = record.get(key_column) if key_column else None
        return assign_split(text if key is None else str(key), self.valid_share, self.test_share)


def _row_groups(path: Path) -> Iterator[tuple[int, ...]]:
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
