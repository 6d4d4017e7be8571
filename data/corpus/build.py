"""Builds the corpus from the cached packages: read, align by key, filter, split, write.

    <out>/aligned.parquet             uid, source, doc, split, n_langs, one column per language (null: no translation)
    <out>/text/<language>.<split>.jsonl   uid, lang, source, text; each text once per language
    <out>/manifest.json               name, version, size and sha256 of every package
    <out>/stats.json                  counts per language and source, what was refused and why, licences

The folder appears whole or not at all. Sources have different licences: the merged corpus is for local use.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from data.corpus.filters import english_fault, translation_fault, words
from data.corpus.languages import LANGUAGES, PIVOT, Language, choose_languages
from data.corpus.output import Row, check_target, write_corpus
from data.corpus.packages import require_packages
from data.corpus.segments import Segment
from data.corpus.sources import Reader, Source, choose_sources, packages_of

LOGGER = logging.getLogger(__name__)

Drops = dict[tuple[str, str], Counter[str]]
"""(source, language) -> reason -> segments; `kept` and `absent` are among the reasons."""

_CHUNK = 2000
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass
class Corpus:
    """Rows in the order of sources and keys, and what was refused."""

    rows: list[Row] = field(default_factory=list)
    drops: Drops = field(default_factory=lambda: defaultdict(Counter))


def build(
    cache: str | Path,
    out: str | Path,
    *,
    sources: Sequence[str] = (),
    languages: Sequence[str] = (),
    jobs: int = 2,
    any_version: bool = False,
    overwrite: bool = False,
) -> Corpus:
    """Builds the corpus into the folder `out`.

    Args:
        cache: folder that `fetch` filled.
        sources, languages: names and ISO 639-1 codes; none means all. English is always among the languages.
        jobs: processes.
        any_version: take packages that are not the pinned ones.
        overwrite: replace an earlier corpus in `out`.

    Raises:
        FileNotFoundError: a package is missing.
        ValueError: unknown names, a package that is damaged or not the pinned one, or an `out` that is in the way.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    chosen_sources, chosen_languages = choose_sources(sources), choose_languages(languages)
    check_target(Path(out), overwrite)
    files = require_packages(cache, packages_of(chosen_sources, chosen_languages), any_version=any_version)
    corpus = Corpus()
    seen: set[str] = set()
    with _executor(jobs) as executor:
        for source in chosen_sources:
            readers = source.readers(chosen_languages, files)
            parts = tqdm(_ordered(executor, read_part, readers), source.name, total=len(readers), unit="part")
            before = len(corpus.rows)
            add_source(corpus, source, parts, chosen_languages, seen, executor)
            LOGGER.info("%s: %d segments", source.name, len(corpus.rows) - before)
    write_corpus(Path(out), corpus.rows, corpus.drops, [language.code for language in chosen_languages], files)
    return corpus


def read_part(reader: Reader) -> list[Segment]:
    """All segments of one part of a source."""
    return list(reader())


def add_source(
    corpus: Corpus,
    source: Source,
    parts: Iterable[list[Segment]],
    languages: Sequence[Language],
    seen: set[str],
    executor: Executor | None = None,
) -> None:
    """Merges the parts of one source by key, filters them and adds the rows with at least one translation.

    Args:
        seen: English segments so far, as bare words; a repeated one is dropped, across all sources.
    """
    texts: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for part in parts:
        for segment in part:
            texts[segment.doc, segment.key].setdefault(segment.language, segment.text)
    kept: list[tuple[str, str, dict[str, str]]] = []
    for (doc, key), translations in texts.items():
        fault = _pivot_fault(translations.get(PIVOT, ""), source.check_english, seen)
        corpus.drops[source.name, PIVOT][fault or "kept"] += 1
        if not fault:
            kept.append((doc, key, translations))
    codes = [language.code for language in languages if language.code != PIVOT]
    chunks = [[entry[2] for entry in kept[start : start + _CHUNK]] for start in range(0, len(kept), _CHUNK)]
    judged = (faults for chunk in _ordered(executor, _Judge(codes), chunks) for faults in chunk)
    for (doc, key, translations), faults in zip(kept, judged, strict=True):
        good = {PIVOT: translations[PIVOT]}
        for code, fault in zip(codes, faults, strict=True):
            corpus.drops[source.name, code][fault or "kept"] += 1
            if not fault:
                good[code] = translations[code]
        if len(good) > 1:
            uid = f"{source.name}/{doc}/{key}"
            corpus.rows.append(Row(uid, source.name, doc, split_of(uid), good))


def split_of(uid: str) -> str:
    """train (95 %), valid (2 %) or test (3 %), by the segment: one segment is held out in every language at once.

    The embedded sample was split by the same function, so its held-out segments are held out here too.
    """
    bucket = int(hashlib.sha1(f"split{uid}".encode()).hexdigest()[:8], 16) % 100
    return "valid" if bucket < 2 else "test" if bucket < 5 else "train"


def _pivot_fault(english: str, check: bool, seen: set[str]) -> str | None:
    fault = english_fault(english) if check else (None if english else "short")
    if fault:
        return fault
    bare = " ".join(words(english))
    if bare in seen:
        return "duplicate"
    seen.add(bare)
    return None


@dataclass(frozen=True)
class _Judge:
    """Faults of the translations of a chunk of segments: one list over `codes` per segment."""

    codes: list[str]

    def __call__(self, chunk: list[dict[str, str]]) -> list[list[str | None]]:
        return [
            [
                translation_fault(texts[code], texts[PIVOT], LANGUAGES[code]) if code in texts else "absent"
                for code in self.codes
            ]
            for texts in chunk
        ]


@contextmanager
def _executor(jobs: int) -> Iterator[Executor | None]:
    """A pool of processes; None for one job, which then runs in this process."""
    if jobs == 1:
        yield None
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as executor:
        yield executor


def _ordered(executor: Executor | None, work: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """Results in the order of the items, each let go once it is handed on."""
    if executor is None:
        yield from map(work, items)
        return
    pending: list[Future[_Out]] = [executor.submit(work, item) for item in items]
    pending.reverse()
    try:
        while pending:
            yield pending.pop().result()
    finally:
        for future in pending:
            future.cancel()
