"""What a reader yields, and alignment by position for documents without keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from data.corpus.languages import PIVOT


class Segment(NamedTuple):
    """One segment in one language; (doc, key) is the same in all translations."""

    doc: str
    key: str
    language: str
    text: str


def squash(text: str) -> str:
    """One blank between words, none at the ends; soft hyphens and zero-width spaces go."""
    return re.sub(r"\s+", " ", text.replace("\u00ad", "").replace("\u200b", "")).strip()


def align_by_position(documents: Mapping[str, Mapping[str, Sequence[str]]]) -> Iterator[Segment]:
    """Aligns the n-th blocks of each document; a translation with another number of blocks is not used.

    Args:
        documents: language -> document -> blocks. An empty block is a place holder.
    """
    for doc, blocks in documents.get(PIVOT, {}).items():
        for language in (PIVOT, *(code for code in documents if code != PIVOT)):
            translated = documents[language].get(doc, ())
            if len(translated) == len(blocks):
                yield from (Segment(doc, str(n), language, text) for n, text in enumerate(translated) if text)
