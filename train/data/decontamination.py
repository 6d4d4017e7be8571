"""Text that must not be trained on: exclusion, and an audit of n-gram overlap with evaluation text.

*Exclusion* leaves out a document that equals an excluded text after normalisation (NFKC, case folded, white space
collapsed), that shares its key (so all translations of an evaluation sentence go), or one of its n-grams: templates and
near copies, of which exact comparison left 15 % of the concept sentences of the demo in.
*The audit* is that of GPT-3 (Brown et al. 2020, appendix C): an evaluation text is contaminated if one of its 13-grams
occurs in the training text. Words are the unit where words are spaced, characters elsewhere; a text shorter than n
units is compared as a whole with whole training texts. N-grams are compared by a 64-bit polynomial hash: among 10^9
training and 10^6 evaluation n-grams a single false hit has a chance of 5e-5.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from babelscope.records import LANGUAGE_COLUMNS, Record, check_text, expand, read_records, segment_key, wide_languages
from train.data.documents import Document, is_unspaced

# Shapes: S units of one text   G n-grams

SPACE = re.compile(r"\s+")
MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)


def normalise(text: str) -> str:
    """NFKC, case folded, runs of white space as one space."""
    return SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def text_digest(text: str) -> bytes:
    """16 bytes that are equal for texts that are equal once normalised."""
    return _digest(normalise(text))


def _digest(normalised: str) -> bytes:
    return hashlib.blake2b(normalised.encode(), digest_size=16).digest()


RULES = ("text", "uid", "ngrams")
"""Why a document is left out, in the order in which the rules are tried."""
NGRAM = 13
"""Words of an n-gram, after GPT-3."""


def ngram_characters(n: int) -> int:
    """Length of an n-gram in characters where words are not spaced: 25 for 13 words, which are about that long."""
    return max(1, round(n * 25 / 13))


@dataclass(frozen=True)
class Exclusion:
    """What must not be trained on. Made by `read_exclusion`; empty without arguments."""

    digests: frozenset[bytes] = frozenset()
    """Of the texts (`text_digest`)."""
    keys: frozenset[str] = frozenset()
    """`uid` of the texts, which their translations share."""
    n: int = 0
    """Words of an n-gram; 0: none are compared."""
    words: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64), repr=False)
    """(G,) ordered hashes of the n-grams of texts in languages that space their words."""
    characters: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64), repr=False)
    """(G,) the same for the other languages."""

    def rule(self, document: Document) -> str | None:
        """The first of `RULES` that leaves the document out, or None if it may be trained on."""
        if not self.digests:
            return None
        text = normalise(document.text)
        if _digest(text) in self.digests:
            return "text"
        if document.key and document.key in self.keys:
            return "uid"
        unspaced = is_unspaced(document.language)
        forbidden, n = (self.characters, ngram_characters(self.n)) if unspaced else (self.words, self.n)
        if self.n and len(_places(forbidden, ngram_hashes(_units(text, unspaced), n))):
            return "ngrams"
        return None


def excluded_files(patterns: Iterable[str | Path]) -> list[Path]:
    """Files of `data.exclude`.

    Raises:
        FileNotFoundError: nothing there, with the command that makes a concept file.
        ValueError: a folder, an empty file or an unknown kind of file.
    """
    try:
        return [path for pattern in patterns for path in expand(pattern)]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"data.exclude: {error}; if it is a concept file, make it first with `python -m analysis label` (the whole "
            "command stands at the head of configs/train/demo.yaml), so that its sentences stay out of training"
        ) from None


def read_exclusion(patterns: Iterable[str | Path], n: int = NGRAM) -> Exclusion:
    """Everything that identifies the texts of these files (parquet, JSONL, plain text), such as concept files.

    Args:
        patterns: files or glob patterns, with a column `text` and optionally a language and a key (`uid`).
        n: words of an n-gram; 0 compares none. A text that states no language counts as both kinds of script.

    Raises:
        FileNotFoundError, ValueError: no such file, damaged, or without texts in `text`; n below 0.
    """
    if n < 0:
        raise ValueError(f"data.exclude_ngrams is {n}: give the words of an n-gram, or 0 to compare none")
    seen: set[tuple[bytes, object]] = set()
    keys: set[str] = set()
    hashes: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for path in excluded_files(patterns):
        for record, place in read_records(path):
            keys.add(segment_key(record))
            for language, given in _texts_of(record, place).items():
                text = normalise(check_text(given, place))
                if (entry := (_digest(text), language)) in seen:  # a concept file repeats a text for every concept
                    continue
                seen.add(entry)
                for unspaced in (False, True) if n else ():
                    if language is None or unspaced == is_unspaced(language):
                        size = ngram_characters(n) if unspaced else n
                        hashes[unspaced].append(ngram_hashes(_units(text, unspaced), size))
    ordered = [np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *hashes[side]])) for side in (False, True)]
    return Exclusion(frozenset(digest for digest, _ in seen), frozenset(keys - {""}), n, *ordered)


def _texts_of(record: Record, place: str) -> dict[str | None, object]:
    """Language (None: not stated) to text: one of a long file, all translations of a row of a wide one.

    Raises:
        ValueError: neither.
    """
    if isinstance(record.get("text"), str):
        return {next((str(record[name]) for name in LANGUAGE_COLUMNS if name in record), None): record["text"]}
    wide: dict[str | None, object] = {
        name: record[name] for name in wide_languages(list(record)) if record[name] is not None
    }
    if not wide:
        raise ValueError(f"{place}: no text in column 'text'; columns are {', '.join(record)}")
    return wide


@dataclass(frozen=True, slots=True)
class Contamination:
    """Overlap of one language's evaluation text with its training text."""

    language: str
    evaluation_texts: int
    contaminated_texts: int
    """Evaluation texts of which at least one n-gram is in the training text."""
    ngrams: int
    found_ngrams: int
    """Different n-grams of the evaluation text, and how many of them are in the training text."""
    training_texts: int
    matching_training_texts: int
    """Training texts that hold one of those n-grams."""
    examples: tuple[str, ...]
    """Some contaminated evaluation texts."""


def audit(
    training: Iterable[tuple[str, str]],
    evaluation: Mapping[str, Sequence[str]],
    *,
    n: int = NGRAM,
    n_characters: int | None = None,
    num_examples: int = 3,
) -> list[Contamination]:
    """One `Contamination` per language of `evaluation`, sorted.

    Args:
        training: (language, text) of the text to search, in any order and of any size; read once.
        evaluation: texts of each language, held in memory.
        n: length of an n-gram in words.
        n_characters: length in characters where the script does not space words; default: `ngram_characters(n)`.
        num_examples: contaminated texts of each language to keep.

    Raises:
        ValueError: a length below 1, or a language of `evaluation` without training text.
    """
    n_characters = ngram_characters(n) if n_characters is None else n_characters
    for option, value, least in (("n", n, 1), ("n_characters", n_characters, 1), ("examples", num_examples, 0)):
        if value < least:
            raise ValueError(f"audit: {option} must be at least {least}, got {value}")
    searches = {
        language: _Search(language, texts, n_characters if is_unspaced(language) else n)
        for language, texts in sorted(evaluation.items())
    }
    for language, text in training:
        if language in searches:
            searches[language].add(text)
    if missing := [language for language, search in searches.items() if not search.seen]:
        raise ValueError(f"no training text for {', '.join(missing)} to audit against")
    return [search.report(num_examples) for search in searches.values()]


class _Search:
    """The n-grams of one language's evaluation texts, and which of them training text has shown so far."""

    def __init__(self, language: str, texts: Sequence[str], n: int) -> None:
        self.language, self.texts, self.n = language, texts, n
        self.seen = self.matching = 0
        self._per_text = [ngram_hashes(units(text, language), n) for text in texts]
        self._wanted = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *self._per_text]))
        self._found = np.zeros(len(self._wanted), dtype=bool)

    def add(self, text: str) -> None:
        hits = _places(self._wanted, ngram_hashes(units(text, self.language), self.n))
        self.seen += 1
        self.matching += len(hits) > 0
        self._found[hits] = True

    def report(self, num_examples: int) -> Contamination:
        dirty = [i for i, hashes in enumerate(self._per_text) if self._found[_places(self._wanted, hashes)].any()]
        return Contamination(
            language=self.language,
            evaluation_texts=len(self.texts),
            contaminated_texts=len(dirty),
            ngrams=len(self._wanted),
            found_ngrams=int(self._found.sum()),
            training_texts=self.seen,
            matching_training_texts=self.matching,
            examples=tuple(self.texts[i] for i in dirty[:num_examples]),
        )


def units(text: str, language: str) -> np.ndarray:
    """64-bit codes (S,) of the words, or of the characters where words are not spaced, without punctuation."""
    return _units(normalise(text), is_unspaced(language))


def _units(text: str, unspaced: bool) -> np.ndarray:
    if unspaced:
        text = "".join(character for character in text if unicodedata.category(character)[0] in "LMN")
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
        return _mix(codes)
    words = (word.strip(_PUNCTUATION) for word in text.split())
    return np.array([_word_code(word) for word in words if word], dtype=np.uint64)


_PUNCTUATION = "".join(chr(code) for code in range(0x2FFF) if unicodedata.category(chr(code))[0] in "PS")


@functools.lru_cache(maxsize=1 << 20)
def _word_code(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def ngram_hashes(codes: np.ndarray, n: int) -> np.ndarray:
    """Hashes (G,) of the n-grams of `codes` (S,): sum of code[i + j] M^(n - j), modulo 2^64, mixed.

    Fewer than n units give one hash of the whole, with its length, so that it equals only another whole text.
    """
    if not len(codes):
        return np.empty(0, dtype=np.uint64)
    size = min(n, len(codes))
    value = np.zeros(len(codes) - size + 1, dtype=np.uint64)
    for offset in range(size):
        value = (value + codes[offset : offset + len(value)]) * MULTIPLIER
    return _mix(value + np.uint64(size))


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(32))) * MULTIPLIER
    return value ^ (value >> np.uint64(29))


def _places(ordered: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Indices into `ordered` of those `hashes` that are in it."""
    if not len(ordered):
        return np.empty(0, dtype=np.int64)
    place = np.searchsorted(ordered, hashes).clip(max=len(ordered) - 1)
    return place[ordered[place] == hashes]


def format_audit(reports: Sequence[Contamination]) -> str:
    """A plain table, one line a language."""
    lines = [f"{'language':<10}{'texts':>8}{'contaminated':>14}{'share':>8}{'n-grams':>10}{'found':>9}{'in docs':>9}"]
    for row in reports:
        share = row.contaminated_texts / row.evaluation_texts if row.evaluation_texts else 0.0
        lines.append(
            f"{row.language:<10}{row.evaluation_texts:>8}{row.contaminated_texts:>14}{share:>8.2%}"
            f"{row.ngrams:>10}{row.found_ngrams:>9}{row.matching_training_texts:>9}"
        )
    return "\n".join(lines)
