"""What a word is, in every script: letters, and the marks that combine with them.

Python's `\\w` ends a word at a combining mark, which cuts Hindi, Tamil, Bengali, Thai and vocalised Arabic to pieces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator


def _ranges(points: Iterator[int]) -> str:
    """Ranges of code points as they stand inside a character class."""
    found: list[list[int]] = []
    for point in points:
        if found and found[-1][1] == point - 1:
            found[-1][1] = point
        else:
            found.append([point, point])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in found)


MARKS = _ranges(point for point in range(0x300, 0x1F000) if unicodedata.category(chr(point))[0] == "M") + "\u200c\u200d"
"""Combining marks and the two joiners, for use inside a character class."""

WORD_CHARACTERS = rf"\w{MARKS}"
"""As `\\w`, with marks; for use inside a character class."""

LETTER = rf"(?:[^\W\d_]|[{MARKS}])"
"""One character inside a word of letters, of fixed width."""

WORD = re.compile(rf"[^\W\d_]{LETTER}*")
"""A word of letters; it never begins with a mark."""

_CLUSTER = re.compile(rf".[{MARKS}]*", re.DOTALL)


def clusters(word: str) -> list[str]:
    """Its characters, each with the marks that belong to it."""
    return _CLUSTER.findall(word)
