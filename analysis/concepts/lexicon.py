"""Lexicons: the words that go with a concept in each language, found by association in labelled parallel text.

The label of a sentence comes from one language; whether it survives translation is measured here. A greedy cover finds
the few words or parts of words that most positives have and negatives lack; the share of positives that have one is the
concept's *support* in that language. The same search on sentences that have nothing in common gives its chance floor.

Entries are written with stars, so that they read and match the same way in every language: `water` is a whole word,
`wass*` the beginning of a word, `*wasser` its end (compounds), `*水*` any place (scripts without spaces, and Arabic
roots behind articles and prefixes), `con đường` two words in a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from analysis.concepts.words import LETTER, WORD, clusters
from babelscope.languages import two_letters

IDEOGRAPHIC = frozenset({"zh", "ja"})
UNSPACED = frozenset({"th", "lo", "km", "my"})
"""Languages that write words of several letters without spaces."""
COMPOUNDING = frozenset({"de", "hu", "nl", "sv", "da", "nb", "fi"})
"""Languages in which the concept is often the second part of a longer word."""

_IDEOGRAPHS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+")

_PAIR = re.compile(rf"(?<!{LETTER})(?=({LETTER}+) ({LETTER}+))")

MINIMUM_HITS = 3
MINIMUM_LIFT = 8.0
"""An entry must be this many times as frequent in the positives left over as in the negatives."""


def fold(text: str) -> str:
    """Lower case without a change of length (Turkish İ would become two characters), so that positions stay valid."""
    return text.replace("İ", "i").lower()


def entries_of(text: str, language: str) -> list[str]:
    """All lexicon entries that `text` matches and that the search considers for `language`, without repeats, in
    order of appearance.
    """
    return list(dict.fromkeys(_entries(fold(text), language)))


def _entries(text: str, language: str) -> Iterator[str]:
    language = two_letters(language)
    if language in IDEOGRAPHIC:
        yield from _anywhere(_IDEOGRAPHS.findall(text), (1, 2, 3, 4))
        return
    if language in UNSPACED:
        yield from _anywhere(_UNSPACED.findall(text), (1, 2, 3, 4, 5, 6))
        return
    words = WORD.findall(text)
    yield from words
    if language == "vi":  # a word is often two syllables, written apart
        yield from (f"{first} {second}" for first, second in _PAIR.findall(text))
    elif language == "ko":  # particles are glued to short stems
        yield from _beginnings(words, (1, 2, 3))
    elif language == "ar":
        yield from _anywhere(words, (3, 4, 5))
    else:
        yield from _beginnings(words, (3, 4, 5, 6))
        if language in COMPOUNDING:
            for word in map(clusters, words):
                yield from (f"*{''.join(word[-n:])}" for n in (4, 5, 6) if len(word) > n + 2)


def _beginnings(words: Iterable[str], sizes: Iterable[int]) -> Iterator[str]:
    for word in map(clusters, words):
        yield from (f"{''.join(word[:n])}*" for n in sizes if len(word) >= n)


def _anywhere(words: Iterable[str], sizes: Iterable[int]) -> Iterator[str]:
    for word in map(clusters, words):
        yield from (f"*{''.join(word[i : i + n])}*" for n in sizes for i in range(len(word) - n + 1))


def lexicon_pattern(entries: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds every whole word which matches an entry, in whatever case that is written; apply it to
    `fold(text)`, positions hold for `text` too.

    Raises:
        ValueError: no entries, or an entry that is empty.
    """
    parts = []
    for entry in sorted(set(map(fold, entries)), key=lambda entry: (-len(entry), entry)):
        body = entry.strip("*")
        if not body:
            raise ValueError(f"lexicon entry {entry!r} has no letters")
        if entry.startswith("*") and entry.endswith("*") and (_IDEOGRAPHS.match(body) or _UNSPACED.match(body)):
            parts.append(re.escape(body))
            continue
        before = rf"{LETTER}*" if entry.startswith("*") else ""
        after = rf"{LETTER}*" if entry.endswith("*") else ""
        parts.append(rf"(?<!{LETTER}){before}{re.escape(body)}{after}(?!{LETTER})")
    if not parts:
        raise ValueError("an empty lexicon matches nothing; leave the concept out")
    return re.compile("|".join(parts))


class EntryIndex:
    """The entries of the sentences of one language as integer ids, computed when first asked for.

    Args:
        texts: sentences, or None where the language lacks one.
        language: ISO 639-1.
    """

    def __init__(self, texts: Sequence[str | None], language: str) -> None:
        self._texts = texts
        self._language = language
        self._ids: dict[str, int] = {}
        self._names: list[str] = []
        self._rows: dict[int, np.ndarray] = {}

    def name(self, entry: int) -> str:
        return self._names[entry]

    def row(self, index: int) -> np.ndarray:
        """Ids of the entries of sentence `index`, each once."""
        if index not in self._rows:
            text = self._texts[index]
            assert text is not None, "only sentences that exist are indexed"
            ids = []
            for entry in entries_of(text, self._language):
                if (known := self._ids.get(entry)) is None:
                    known = self._ids[entry] = len(self._names)
                    self._names.append(entry)
                ids.append(known)
            self._rows[index] = np.array(ids, dtype=np.int32)
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._names)


def find_lexicon(
    index: EntryIndex, positives: np.ndarray, negatives: np.ndarray, *, size: int, min_share: float
) -> tuple[list[str], np.ndarray, float]:
    """Greedy cover of the positives by at most `size` entries that the negatives lack.

    Args:
        positives, negatives: rows of `index`.
        min_share: share of the positives that an entry must newly cover; if too low, chance words are found.

    Each round takes the entry with the largest (share of all positives that it newly covers) - 2 x (its rate in the
    negatives) among those that reach `MINIMUM_LIFT`; longer entries break ties.

    Returns:
        the entries; a bool array over `positives`, True where one of them occurs; the share of `negatives` in which one
        of them occurs.
    """
    counted, owners = _flatten(index, positives)
    excluded, excluded_owners = _flatten(index, negatives)
    frequency = np.bincount(counted, minlength=len(index))
    minimum = max(MINIMUM_HITS, min_share * len(positives))
    candidates = np.flatnonzero(frequency >= minimum)
    names = [index.name(int(entry)) for entry in candidates]
    by_name = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.intp)
    candidates, names = candidates[by_name], [names[i] for i in by_name]

    hits = _membership(len(index), candidates, counted, owners, len(positives))  # (P, C)
    in_negatives = _membership(len(index), candidates, excluded, excluded_owners, len(negatives))  # (M, C)
    rate = (in_negatives.sum(0) + 0.5) / max(1, len(negatives))
    bonus = 0.0005 * np.array([len(name.strip("*")) for name in names])

    covered = np.zeros(len(positives), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < size and len(names) and not covered.all():
        gain = hits[~covered].sum(0)
        eligible = (gain >= minimum) & (gain >= MINIMUM_LIFT * rate * (~covered).sum())
        score = np.where(eligible, gain / len(positives) - 2 * rate + bonus, 0.0)
        best = int(score.argmax())
        if score[best] <= 0:
            break
        chosen.append(best)
        covered |= hits[:, best]
    false_hits = in_negatives[:, chosen].any(1).mean() if chosen and len(negatives) else 0.0
    return [names[i] for i in chosen], covered, float(false_hits)


def _flatten(index: EntryIndex, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry ids of all rows in one array, and for each the position of its row."""
    parts = [index.row(int(row)) for row in rows]
    if not parts:
        return np.zeros(0, np.int32), np.zeros(0, np.intp)
    return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def _membership(
    vocabulary: int, candidates: np.ndarray, entries: np.ndarray, owners: np.ndarray, num_rows: int
) -> np.ndarray:
    """Bool (num_rows, C): row r has candidate c."""
    column = np.full(vocabulary, -1, dtype=np.int64)
    column[candidates] = np.arange(len(candidates))
    columns = column[entries]
    matrix = np.zeros((num_rows, len(candidates)), dtype=bool)
    matrix[owners[columns >= 0], columns[columns >= 0]] = True
    return matrix


def read_lexicon(path: str | Path) -> dict[str, dict[str, tuple[str, ...]]]:
    """Concept -> language -> entries, from the file that the labelling command writes beside its table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a lexicon.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such lexicon; `python -m analysis label` writes it beside the concept file"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            concept: {language: _entry_list(entries) for language, entries in languages.items()}
            for concept, languages in content["lexicon"].items()
        }
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a lexicon file ({error!r})") from None


def _entry_list(entries: object) -> tuple[str, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{entries!r:.60} is not a list of words")
    return tuple(entries)
