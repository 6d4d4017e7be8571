"""Documents, and what every source of them can do.

A source is cut into shards that can be read independently (and in parallel); a shard yields documents of one or more
languages with their split. Splits that the data states are kept; where it states none, a document's split follows from
a hash of its key, so translations of one sentence, which share the key, always land in the same split.
Implemented by `train.data.local` and `train.data.hub`; called by `train.data.sources` and `train.data.prepare`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
"""What a split column may say, and what it means."""

UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo", "dz"})
"""Languages whose script puts no space between words: a count of words by spaces means nothing there."""


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


def check_shares(valid_share: float, test_share: float) -> None:
    if valid_share < 0 or test_share < 0 or valid_share + test_share >= 1:
        raise ValueError(
            f"valid_share {valid_share} and test_share {test_share} must not be negative and leave text to train on"
        )
