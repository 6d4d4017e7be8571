"""Readers for message catalogues (GNU gettext .mo): story games, translated sentence by sentence.

A catalogue maps (context, English message) to its translation, so alignment is exact.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from data.corpus.archives import read_deb
from data.corpus.filters import MINIMUM_WORDS, has_markup
from data.corpus.languages import PIVOT, Language
from data.corpus.segments import Segment, squash

_MAGIC = 0x950412DE
_CONTEXT_END = "\x04"

_INLINE = "i|b|u|big|small|bold|italic|header|ref|span|img|jump|format|color|info|good|bad|neutral|stat"
_TAG = re.compile(rf"</?(?:{_INLINE})(?![A-Za-z0-9])[^<>]*>")
_TEXT_ATTRIBUTE = re.compile(r"<(italic|bold|header|ref|format)>[^<>]*?text=(['\"])(.*?)\2[^<>]*?</\1>", re.DOTALL)
"""Wesnoth's help markup: <ref>dst='unit_elf' text='elf'</ref>."""

WESNOTH_TECHNICAL = frozenset({"wesnoth-lib", "wesnoth-editor", "wesnoth-manpages", "wesnoth-manual", "wesnoth-ai"})


def read_mo(content: bytes) -> Iterator[tuple[str, str, str]]:
    """(context, message, translation) of a catalogue; of plural forms the first.

    Format: GNU gettext manual, "The Format of GNU MO Files". Raises `ValueError` if it is none.
    """
    order = "<" if content[:4] == struct.pack("<I", _MAGIC) else ">"
    try:
        magic, _, count, originals, translations = struct.unpack_from(f"{order}5I", content)
        if magic != _MAGIC:
            raise ValueError("not a .mo catalogue")
        for n in range(count):
            message = _string(content, order, originals + 8 * n)
            context, _, message = message.rpartition(_CONTEXT_END)
            translation = _string(content, order, translations + 8 * n)
            yield context, message.split("\0")[0], translation.split("\0")[0]
    except struct.error:
        raise ValueError("a damaged .mo catalogue") from None


def _string(content: bytes, order: str, offset: int) -> str:
    length, start = struct.unpack_from(f"{order}2I", content, offset)
    return content[start : start + length].decode("utf-8", "replace")


def message_key(context: str, message: str) -> str:
    """A short stable key of a message: the same in every language and in every build."""
    return hashlib.sha1(f"{context}{_CONTEXT_END}{message}".encode()).hexdigest()[:10]


def clean_message(text: str) -> str:
    """Text without the games' inline markup; empty if markup or placeholders are left."""
    text = squash(_TAG.sub("", _TEXT_ATTRIBUTE.sub(r"\3", text)))
    return "" if has_markup(text) else text


def strip_wesnoth_prefix(message: str) -> str:
    """Wesnoth marks meanings of a message as "prefix^message"."""
    return message.split("^", 1)[1] if "^" in message else message


def strip_freeciv_prefix(message: str) -> str:
    """Freeciv marks contexts as "?context:message"."""
    return re.sub(r"^\?[a-z_ ]+:", "", message)


def read_catalogues(
    package: Path,
    languages: Collection[Language],
    strip_prefix: Callable[[str], str] = str,
    skip: Collection[str] = (),
) -> Iterator[Segment]:
    """Segments of all catalogues (.../<locale>/LC_MESSAGES/<domain>.mo) of a package.

    Args:
        strip_prefix: takes a game's mark of context off a message.
        skip: domains that are technical.
    """
    locales = {locale: (rank, lang.code) for lang in languages for rank, locale in enumerate(lang.gettext)}
    catalogues = []
    for path, content in read_deb(package, r"/LC_MESSAGES/[^/]+\.mo$"):
        locale, domain = path.split("/")[-3], path.split("/")[-1].removesuffix(".mo")
        if locale in locales and domain not in skip:
            rank, code = locales[locale]
            catalogues.append((rank, domain, code, content))
    seen: set[tuple[str, str]] = set()
    for _, domain, code, content in sorted(catalogues, key=lambda entry: entry[:3]):
        try:
            yield from _segments(domain, code, read_mo(content), strip_prefix, seen)
        except ValueError as error:
            raise ValueError(f"{package}: {domain}.mo in {code!r}: {error}") from None


def _segments(
    domain: str,
    code: str,
    messages: Iterable[tuple[str, str, str]],
    strip_prefix: Callable[[str], str],
    seen: set[tuple[str, str]],
) -> Iterator[Segment]:
    for context, message, translation in messages:
        if len(message.split()) < MINIMUM_WORDS:
            continue
        english, translated = clean_message(strip_prefix(message)), clean_message(translation)
        if not english or not translated:
            continue
        key = message_key(context, message)
        if (domain, key) not in seen:
            seen.add((domain, key))
            yield Segment(domain, key, PIVOT, english)
        yield Segment(domain, key, code, translated)
