"""Documents, and what every source of them can do.

A source is cut into shards that can be read independently (and in parallel); a shard yields documents of one or more
languages with their split. Splits that the data states are kept; where it states none, a document's split follows from
a hash of its key, so translations of one sentence, which share the key, always land in the same split.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from babelscope.languages import two_letters

SPLITS = ("train", "valid", "test")

UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo", "dz"})
"""Languages whose script puts no space between words."""


@dataclass(frozen=True, slots=True)
class Document:
    language: str
    text: str
    split: str
    key: str = field(default="", compare=False)
    """What all translations of this text share and no other text has (`uid`, or `doc` with `sent_id`); empty: none."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a source, small enough to be passed to another process."""

    path: str = ""
    language: str = ""
    """Language of every document, if the file or dataset has only one."""
    part: tuple[int, ...] = ()
    """Row groups of a parquet file, or (index, count) of a dataset's shards."""


def is_unspaced(language: str) -> bool:
    """Whether a count of words by spaces means nothing in this language."""
    return two_letters(language) in UNSPACED


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
    if not (valid_share >= 0 and test_share >= 0 and valid_share + test_share < 1):  # also refuses nan
        raise ValueError(
            f"valid_share {valid_share} and test_share {test_share} must not be negative and leave text to train on"
        )


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
    if twice := sorted({language for language in languages if list(languages).count(language) > 1}):
        raise ValueError(f"data.languages names {', '.join(twice)} twice")
    if unknown := sorted(set(languages) - offered):
        raise ValueError(f"unknown language {', '.join(unknown)}: the sources offer {', '.join(sorted(offered))}")
    return tuple(sorted(languages))


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
    keep: Callable[[Document], bool] = lambda document: True,
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
                if document.split == split and left[document.language] > 0 and keep(document):
                    texts[document.language].append(document.text)
                    left[document.language] -= len(document.text.encode())
                    if left[document.language] <= 0 and not any(left[language] > 0 for language in wanted):
                        break
    return texts
