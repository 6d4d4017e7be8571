"""Datasets of the Hugging Face hub, streamed. Named in YAML as `train.data.sources.HubText`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.data.documents import Document, Shard, TextSource, assign_split, check_shares

logger = logging.getLogger(__name__)


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
            text = record.get(self.text_column)
            if not isinstance(text, str):
                fault = f"holds {type(text).__name__}, not text" if self.text_column in record else "is not there"
                raise ValueError(
                    f"{self._where(shard.language)}: column {self.text_column!r} {fault}; "
                    f"columns are {', '.join(record)}"
                )
            if text.strip():
                yield Document(shard.language, text, self._split_of(text, index))

    def _records(self, rows: Any, language: str, limit: int | None) -> Iterator[dict[str, Any]]:
        iterator = iter(rows)
        number = 0
        while limit is None or number < limit:
            try:
                record = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # network, decompression, parsing: datasets raises whatever its readers raise
                raise ValueError(
                    f"{self._where(language)}: reading stopped after {number} documents ({_first_line(error)}); "
                    "start again to go on with the shards that are missing"
                ) from error
            yield record
            number += 1

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
            reason = _first_line(error)
            raise ValueError(f"{self._where(language)}, split {split!r}: cannot be read ({reason})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
