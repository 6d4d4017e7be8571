"""Segments in all their translations, side by side: the view of parallel text that labelling needs.

Reads the same files as analysis/texts.py (long or wide) and keeps the source and split of each segment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.texts import language_column, read_records, split_of, translations
from babelscope.records import refuse_unknown, segment_key


@dataclass(frozen=True)
class AlignedText:
    """N segments in L languages, in the order of a hash of their keys (so that a prefix is a random sample, the same
    on every machine).
    """

    languages: tuple[str, ...]
    uids: tuple[str, ...]
    sources: tuple[str, ...]
    """Empty where the file names no source."""
    splits: tuple[str, ...]
    """`train` where the file names no split."""
    texts: dict[str, tuple[str | None, ...]]
    """Language -> N texts; None where there is no translation."""
    present: np.ndarray
    """Bool (N, L)."""

    def __len__(self) -> int:
        return len(self.uids)


@dataclass
class _Segment:
    source: str
    split: str
    texts: dict[str, str]
    keyed: bool = True
    """False where the file gives no key."""


def read_aligned(
    path: str | Path, *, pivot: str, languages: Sequence[str] = (), splits: Sequence[str] = ()
) -> AlignedText:
    """Reads the segments that have a text in the pivot language.

    Args:
        path: texts, long or wide, see analysis/texts.py; without keys every row is a segment.
        pivot: the language in which concepts are recognised; always among the languages of the result.
        languages: ISO 639-1 codes; none means all that the file has, sorted.
        splits: of `train`, `valid`, `test`; none means all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: malformed columns or rows, a language or split that the file does not have, a key that occurs twice.
    """
    path = Path(path)
    segments: dict[str, _Segment] = {}
    for place, record in read_records(path):
        _collect(f"{path}, {place}", record, segments)
    found = {language for segment in segments.values() for language in segment.texts}
    refuse_unknown(path, "language", (pivot, *languages), found)
    refuse_unknown(path, "split", splits, {segment.split for segment in segments.values()})

    chosen = tuple(dict.fromkeys((pivot, *languages))) if languages else (pivot, *sorted(found - {pivot}))
    kept = [
        (uid, segment)
        for uid, segment in segments.items()
        if pivot in segment.texts and (not splits or segment.split in splits)
    ]
    if not kept:
        raise ValueError(f"{path}: no segment has a text in the pivot language {pivot!r} in the chosen splits")
    for language in chosen:
        if not any(language in segment.texts for _, segment in kept):
            raise ValueError(
                f"{path}: no text in {language!r} is a translation of one in {pivot!r}; give the rows of one segment "
                f"the same uid, or choose languages: [{pivot}], or give each language a concept list of its own "
                f"(--list {pivot}=FILE {language}=FILE)"
            )
    kept.sort(key=lambda item: hashlib.blake2b(item[0].encode(), digest_size=8).digest())
    texts = {language: tuple(segment.texts.get(language) for _, segment in kept) for language in chosen}
    return AlignedText(
        languages=chosen,
        uids=tuple(uid for uid, _ in kept),
        sources=tuple(segment.source for _, segment in kept),
        splits=tuple(segment.split for _, segment in kept),
        texts=texts,
        present=np.array([[text is not None for text in texts[language]] for language in chosen]).T,
    )


def _collect(place: str, record: object, segments: dict[str, _Segment]) -> None:
    """Adds one row (long) or one segment (wide) to `segments`."""
    assert isinstance(record, dict)
    key = segment_key(record)
    column = language_column(record)
    languages = translations(record) if column is None else []
    keyed, split = bool(key), split_of(record) or "train"
    first = next(iter(segments.values()), None)
    if not keyed and not (first and first.keyed) and (languages or isinstance(record.get("text"), str)):
        # A segment of its own, long: nobody's translation; and the same text twice is one.
        content = [record[name] for name in languages] if column is None else f"{record[column]} {record['text']}"
        key = hashlib.sha256(str(content).encode()).hexdigest()[:16]
        if key in segments:
            return
    if not key or (column is None and not languages) or (column is not None and "text" not in record):
        raise ValueError(
            f"{place}: expected the columns lang, text and uid (or doc with sent_id), "
            f"or one column per language; got {', '.join(record)}"
        )
    texts = {record[column]: record["text"]} if column is not None else {name: record[name] for name in languages}
    segment = segments.setdefault(key, _Segment(str(record.get("source") or ""), split, {}, keyed))
    if segment.split != split:
        raise ValueError(
            f"{place}: segment {key!r} is in split {segment.split!r} in one language and in {split!r} here"
        )
    for language, text in texts.items():
        if text is None and column is None:
            continue
        if not isinstance(language, str) or not isinstance(text, str) or not text.strip():
            raise ValueError(f"{place}: the text in language {language!r} must be a non-empty string, got {text!r:.60}")
        if language in segment.texts:
            raise ValueError(f"{place}: segment {key!r} occurs twice in {language!r}; keys must be unique per language")
        segment.texts[language] = text
