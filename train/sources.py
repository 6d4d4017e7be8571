"""Where text comes from: local files and datasets of the hub, behind one face.

A source is cut into shards that can be read independently (and in parallel); a shard yields documents of one or more
languages with their split. Splits that the data states are kept; where it states none, a document's split follows from
a hash of its key, so translations of one sentence, which share the key, always land in the same split.
Sources are named in YAML by `class_path` (`train.sources.LocalText`, `train.sources.HubText`); called by
`train.prepare` and `train.data`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from train.readers import Record, check_text_column, columns_of, expand, kind_of, open_parquet, read_records

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
"""What a split column may say, and what it means."""

LANGUAGE_COLUMNS = ("lang", "language")
KEY_COLUMNS = ("uid", "doc", "id")
UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo", "dz"})
"""Languages whose script puts no space between words: a count of words by spaces means nothing there."""
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*")
SHARD_BYTES = 64 * 2**20
"""Uncompressed size of the row groups of a parquet file that make one shard."""


@dataclass(frozen=True, slots=True)
class Document:
    language: str
    text: str
    split: str


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a source, small enough to be passed to another process."""

    path: str = ""
    language: str = ""
    """Language of every document, if the file or dataset has only one."""
    part: tuple[int, ...] = ()
    """Row groups of a parquet file, or (index, count) of a dataset's shards."""


class TextSource(ABC):
    """Text of one or more languages."""

    @abstractmethod
    def languages(self) -> tuple[str, ...]:
        """Languages that this source offers, sorted."""

    @abstractmethod
    def shards(self, languages: Collection[str]) -> list[Shard]:
        """Parts that hold these languages, in a fixed order."""

    @abstractmethod
    def read(self, shard: Shard, languages: Collection[str]) -> Iterator[Document]:
        """Documents of these languages in one part, in a fixed order; empty texts are left out."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Local files whose content decides what is read; empty for a source elsewhere."""

    @abstractmethod
    def settings(self) -> dict:
        """Everything besides the files' content that decides what is read, and nothing that does not."""


def assign_split(key: str, valid_share: float, test_share: float) -> str:
    """The split of a document without one: its key, hashed to [0, 1), against the shares."""
    place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    if place < valid_share:
        return "valid"
    return "test" if place < valid_share + test_share else "train"


def _check_shares(valid_share: float, test_share: float) -> None:
    if valid_share < 0 or test_share < 0 or valid_share + test_share >= 1:
        raise ValueError(
            f"valid_share {valid_share} and test_share {test_share} must not be negative and leave text to train on"
        )


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
        _check_shares(self.valid_share, self.test_share)

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
        return {self._language_of(record, column, place) for record, place in read_records(path, [column])}

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
    """Parts per language that may be read in parallel (at most the number of files of the dataset)."""
    valid_share: float = 0.001
    test_share: float = 0.001

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"HubText {self.dataset}: names is empty; give the configuration of each language")
        if self.num_shards < 1 or (self.max_documents is not None and self.max_documents < 1):
            raise ValueError(f"HubText {self.dataset}: num_shards and max_documents must be positive")
        _check_shares(self.valid_share, self.test_share)
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
        split = self.split if index >= 0 else str(self.valid_split)
        rows = self._stream(shard.language, split)
        if index >= 0 and count > 1:
            if rows.num_shards < count:
                raise ValueError(
                    f"{self._where(shard.language)}: has {rows.num_shards} files, so num_shards can be at most "
                    f"{rows.num_shards}, not {count}"
                )
            rows = rows.shard(num_shards=count, index=index)
        limit = None if self.max_documents is None or index < 0 else -(-self.max_documents // count)
        for number, record in enumerate(rows):
            if limit is not None and number >= limit:
                return
            if self.text_column not in record:
                raise ValueError(
                    f"{self._where(shard.language)}: no column {self.text_column!r}; columns are {', '.join(record)}"
                )
            text = record[self.text_column]
            if not isinstance(text, str):
                raise ValueError(
                    f"{self._where(shard.language)}: column {self.text_column!r} holds {type(text).__name__}, not text"
                )
            if text.strip():
                yield Document(shard.language, text, self._split_of(text, index))

    def _split_of(self, text: str, index: int) -> str:
        if index < 0:
            return "valid"
        return assign_split(text, 0.0 if self.valid_split else self.valid_share, self.test_share)

    def _where(self, language: str) -> str:
        return f"{self.dataset} ({self.names[language]})"

    def _stream(self, language: str, split: str):  # type: ignore[no-untyped-def]  # datasets has no useful types
        import datasets  # slow to import, and only this source needs it

        try:
            return datasets.load_dataset(
                self.dataset, name=self.names[language], split=split, revision=self.revision, streaming=True
            )
        except Exception as error:  # datasets raises many kinds; all mean that this dataset cannot be had
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{self._where(language)}, split {split!r}: cannot be read ({reason})") from error


def resolve_languages(sources: Sequence[TextSource], languages: Collection[str] | None) -> tuple[str, ...]:
    """The languages to use, sorted: all that the sources offer, or those asked for.

    Raises:
        ValueError: a language that no source offers, or no source at all.
    """
    offered = {language for source in sources for language in source.languages()}
    if not offered:
        raise ValueError("no text: data.sources is empty")
    if languages is None:
        return tuple(sorted(offered))
    if not languages:
        raise ValueError("data.languages is empty; leave it out to use all languages of the sources")
    if unknown := sorted(set(languages) - offered):
        raise ValueError(f"unknown language {', '.join(unknown)}: the sources offer {', '.join(sorted(offered))}")
    return tuple(sorted(set(languages)))


def stream_documents(sources: Sequence[TextSource], languages: Collection[str]) -> Iterator[Document]:
    """All documents of these languages, source by source and shard by shard."""
    for source in sources:
        for shard in source.shards(languages):
            yield from source.read(shard, languages)


def collect_texts(
    sources: Sequence[TextSource],
    languages: Collection[str],
    split: str,
    max_bytes: int,
    *,
    keep: Callable[[str], bool] = lambda text: True,
) -> dict[str, list[str]]:
    """Texts of a split held in memory, about `max_bytes` bytes of each language at most, in one pass over the text."""
    texts: dict[str, list[str]] = {language: [] for language in sorted(languages)}
    left = dict.fromkeys(texts, max_bytes)
    for source in sources:
        for shard in source.shards(languages):
            wanted = {language for language in languages if left[language] > 0}
            if not wanted or (shard.language and shard.language not in wanted):
                continue
            for document in source.read(shard, wanted):
                if document.split == split and left[document.language] > 0 and keep(document.text):
                    texts[document.language].append(document.text)
                    left[document.language] -= len(document.text.encode())
                    if left[document.language] <= 0 and not any(left[language] > 0 for language in wanted):
                        break
    return texts
