"""Where text comes from: files on disk (long, wide or one file per language), and datasets of the hub, streamed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from babelscope.errors import one_line
from babelscope.records import (
    LANGUAGE_CODE,
    LANGUAGE_COLUMNS,
    SEGMENT_COLUMNS,
    SPLIT_NAMES,
    Record,
    check_text,
    check_text_column,
    columns_of,
    distinct_values,
    expand,
    kind_of,
    read_records,
    row_group_runs,
    segment_key,
    wide_languages,
)
from train.data.documents import Document, Shard, TextSource, assign_split, check_shares

logger = logging.getLogger(__name__)

KEY_COLUMNS = ("uid", "doc", "id")
"""By which documents are dealt to splits: all sentences of a `doc` go together."""


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
    """Default: `lang`, else `language`."""
    split_column: str = "split"
    """Used if it is there (one of another name must be): train, valid (validation, dev) or test."""
    key_column: str | None = None
    """What translations of one text have in common, for splits by hash. Default: `uid`, `doc`, `id`, else the text."""
    valid_share: float = 0.01
    """Share of the documents for validation where the data states no split."""
    test_share: float = 0.01
    _languages: tuple[str, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.files_by_language is None):
            raise ValueError("LocalText: give either path or files_by_language")
        for language in self.files_by_language or ():
            if not LANGUAGE_CODE.fullmatch(language):
                raise ValueError(f"LocalText: {language!r} in files_by_language is not a language code")
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
                shards += [Shard(str(path), language, groups) for groups in row_group_runs(path)]
            else:
                shards.append(Shard(str(path), language))
        return shards

    def read(self, shard: Shard, languages: Collection[str]) -> Iterator[Document]:
        path = Path(shard.path)
        names = columns_of(path)
        wide = wide_languages(names, self.text_column) if not shard.language else []
        if wide:
            texts = {column: column for column in wide if column in languages}
        else:
            texts = {self.text_column: ""}
        for column in texts:
            check_text_column(path, column)
        language_column = None if shard.language or wide else self._language_column(path, names)
        key_column = self._given(path, names, "key_column") or next((n for n in KEY_COLUMNS if n in names), None)
        if self.split_column != "split":
            self._given(path, names, "split_column")
        columns = [*texts, *filter(None, (language_column, key_column))]
        columns += [name for name in (self.split_column, *SEGMENT_COLUMNS) if name in names]
        for record, place in read_records(path, list(dict.fromkeys(columns)), shard.part or None):
            for column, language in texts.items():
                language = language or shard.language or self._language_of(record, language_column, place)
                if language not in languages:
                    continue
                text = self._text_of(record, column, place, optional=bool(wide))
                if text is not None and text.strip():
                    split = self._split_of(record, key_column, text, place)
                    yield Document(language, text, split, segment_key(record))

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
        if wide := wide_languages(names, self.text_column):
            return set(wide)
        column = self._language_column(path, names)
        values = distinct_values(path, column)
        return {self._language_of({column: value}, column, place) for value, place in values.items()}

    def _language_column(self, path: Path, names: Sequence[str]) -> str:
        for name in (self._given(path, names, "language_column"), *LANGUAGE_COLUMNS):
            if name in names:
                return str(name)
        raise ValueError(
            f"{path}: no column of languages ({' or '.join(LANGUAGE_COLUMNS)}); columns are {', '.join(names)}; "
            "set language_column, or files_by_language if the file has one language"
        )

    def _given(self, path: Path, names: Sequence[str], option: str) -> str | None:
        """The column that an option names, which the file must have."""
        column: str | None = getattr(self, option)
        if column and column not in names:
            raise ValueError(f"{path}: no column {column!r} ({option}); columns are {', '.join(names)}")
        return column

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
        return check_text(text, f"{place}: field {column!r}")

    def _split_of(self, record: Record, key_column: str | None, text: str, place: str) -> str:
        stated = record.get(self.split_column)
        if stated is not None:
            if not isinstance(stated, str) or stated not in SPLIT_NAMES:
                raise ValueError(f"{place}: split {stated!r} is none of {', '.join(SPLIT_NAMES)}")
            return SPLIT_NAMES[stated]
        key = record.get(key_column) if key_column else None
        return assign_split(text if key is None else str(key), self.valid_share, self.test_share)


@dataclass
class HubText(TextSource):
    """A dataset of the Hugging Face hub, streamed, with one configuration per language.

    Fits FineWeb-2 (`HuggingFaceFW/fineweb-2`, names like `spa_Latn`), CulturaX (`uonlp/CulturaX`, `es`), mC4
    (`allenai/c4`, `es`) and CC-100 style data. A local folder in the same form works as well, offline.
    """

    dataset: str
    """Hub name, or a local folder."""
    names: dict[str, str]
    """Configuration of every language, e.g. {es: spa_Latn}."""
    text_column: str = "text"
    split: str = "train"
    """The dataset's split from which training text comes."""
    valid_split: str | None = None
    """The dataset's split for validation; without one, documents are held out by hash."""
    revision: str | None = None
    """Commit, tag or branch. Name a commit for a run that can be repeated."""
    max_documents: int | None = None
    """Read at most so many documents of the training split per language (about: it is divided among the shards)."""
    num_shards: int = 1
    """Parts per language that may be read in parallel; no more are used than a language has files."""
    valid_share: float = 0.001
    test_share: float = 0.001

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"HubText {self.dataset}: names is empty; give the configuration of each language")
        if self.num_shards < 1 or (self.max_documents is not None and self.max_documents < 1):
            raise ValueError(f"HubText {self.dataset}: num_shards and max_documents must be positive")
        check_shares(self.valid_share, self.test_share)
        if self.revision is None and not Path(self.dataset).exists():
            logger.warning("%s: no revision given, the text may change between runs", self.dataset)

    def files(self) -> list[Path]:
        folder = Path(self.dataset)
        return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []

    def settings(self) -> dict:
        return {
            "kind": "hub",
            "dataset": None if Path(self.dataset).is_dir() else self.dataset,
            "names": dict(sorted(self.names.items())),
            "text_column": self.text_column,
            "split": self.split,
            "valid_split": self.valid_split,
            "revision": self.revision,
            "max_documents": self.max_documents,
            "num_shards": self.num_shards,
            "shares": [self.valid_share, self.test_share],
        }

    def languages(self) -> tuple[str, ...]:
        return tuple(sorted(self.names))

    def shards(self, languages: Collection[str]) -> list[Shard]:
        """(index, count) for the training split, and (-1, 1) for the validation split if there is one."""
        shards = []
        for language in self.languages():
            if language in languages:
                shards += [Shard(language=language, part=(i, self.num_shards)) for i in range(self.num_shards)]
                shards += [Shard(language=language, part=(-1, 1))] if self.valid_split else []
        return shards

    def read(self, shard: Shard, languages: Collection[str]) -> Iterator[Document]:
        index, count = shard.part
        rows = self._stream(shard.language, self.split if index >= 0 else str(self.valid_split))
        limit = None
        if index >= 0:
            count = min(count, rows.num_shards)
            if index >= count:
                return
            rows = rows.shard(num_shards=count, index=index)
            limit = None if self.max_documents is None else -(-self.max_documents // count)
        for record in self._records(rows, shard.language, limit):
            place = f"{self._where(shard.language)}: column {self.text_column!r}"
            if self.text_column not in record:
                raise ValueError(f"{place} is not there; columns are {', '.join(record)}")
            text = check_text(record[self.text_column], place)
            if text.strip():
                yield Document(shard.language, text, self._split_of(text, index))

    def _records(self, rows: Any, language: str, limit: int | None) -> Iterator[dict[str, Any]]:
        number = 0
        try:
            for record in itertools.islice(rows, limit):
                yield record
                number += 1
        except Exception as error:  # network, decompression, parsing: datasets raises whatever its readers raise
            raise ValueError(
                f"{self._where(language)}: reading stopped after {number} documents ({one_line(error)}); "
                "start again to go on with the shards that are missing"
            ) from error

    def _split_of(self, text: str, index: int) -> str:
        if index < 0:
            return "valid"
        return assign_split(text, 0.0 if self.valid_split else self.valid_share, self.test_share)

    def _where(self, language: str) -> str:
        return f"{self.dataset} ({self.names[language]})"

    def _stream(self, language: str, split: str) -> Any:
        import datasets  # slow to import, and only this source needs it

        try:
            return datasets.load_dataset(
                self.dataset, name=self.names[language], split=split, revision=self.revision, streaming=True
            )
        except Exception as error:  # datasets raises many kinds; all mean that this dataset cannot be had
            raise ValueError(f"{self._where(language)}, split {split!r}: cannot be read ({one_line(error)})") from error
