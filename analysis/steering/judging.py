"""Judging generated text: its language, whether it hits a concept, how varied and how repetitive it is.

The language is decided by script first (Greek, Hangul, kana, ... settle it), then among the study's languages of that
script by py3langid, with a threshold: on the degenerate text of a small model a forced choice would be misleading, so
`undetermined` is an outcome of its own.

Shapes:  N texts
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from analysis.concepts.lexicon import fold, lexicon_pattern

UNDETERMINED = "undetermined"

SCRIPT_OF = {
    "el": "GREEK", "ru": "CYRILLIC", "bg": "CYRILLIC", "uk": "CYRILLIC", "sr": "CYRILLIC", "mk": "CYRILLIC",
    "be": "CYRILLIC", "kk": "CYRILLIC", "ky": "CYRILLIC", "mn": "CYRILLIC", "ar": "ARABIC", "fa": "ARABIC",
    "ur": "ARABIC", "ps": "ARABIC", "ug": "ARABIC", "he": "HEBREW", "yi": "HEBREW", "hi": "DEVANAGARI",
    "mr": "DEVANAGARI", "ne": "DEVANAGARI", "bn": "BENGALI", "as": "BENGALI", "ta": "TAMIL", "te": "TELUGU",
    "ml": "MALAYALAM", "kn": "KANNADA", "gu": "GUJARATI", "pa": "GURMUKHI", "si": "SINHALA", "th": "THAI",
    "lo": "LAO", "km": "KHMER", "my": "MYANMAR", "ka": "GEORGIAN", "hy": "ARMENIAN", "am": "ETHIOPIC",
    "ko": "HANGUL", "ja": "KANA", "zh": "CJK",
}  # fmt: skip
"""Script of a language where it is not Latin, as Unicode's character names spell it."""


class LanguageDetector(ABC):
    """Decides the language of texts among the languages of a study."""

    @abstractmethod
    def detect(self, texts: Sequence[str], languages: Sequence[str]) -> list[str]:
        """For each text one of `languages` or `UNDETERMINED`.

        Raises:
            ValueError: a language that the detector does not know.
        """


class ScriptAndLangid(LanguageDetector):
    """Script check, then py3langid restricted to the study's languages of that script.

    Args:
        threshold: smallest probability (renormalised over the candidates) that counts as a decision.
        min_letters: texts with fewer letters are undetermined.
        script_share: smallest share of letters that the leading script must have.
    """

    def __init__(self, threshold: float = 0.7, min_letters: int = 8, script_share: float = 0.6) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold is {threshold}; use a probability from 0 to below 1")
        if not 0 < script_share <= 1:
            raise ValueError(f"script_share is {script_share}; use a share above 0 and up to 1")
        self.threshold, self.min_letters, self.script_share = threshold, min_letters, script_share

    def detect(self, texts: Sequence[str], languages: Sequence[str]) -> list[str]:
        identifier = _identifier(tuple(sorted(set(languages))))
        return [self._detect_one(text, languages, identifier) for text in texts]

    def _detect_one(self, text: str, languages: Sequence[str], identifier: object) -> str:
        counts = script_counts(text)
        letters = sum(counts.values())
        # An ideograph or a syllable says more than a letter of an alphabet.
        weight = letters + 2 * (counts["CJK"] + counts["KANA"] + counts["HANGUL"])
        if weight < self.min_letters:
            return UNDETERMINED
        candidates = candidates_by_script(counts, languages, self.script_share)
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            return UNDETERMINED
        scores = {language: p for language, p in identifier.rank(text) if language in candidates}  # type: ignore[attr-defined]
        best = max(scores, key=lambda language: scores[language])
        total = sum(scores.values())
        return best if total > 0 and scores[best] / total >= self.threshold else UNDETERMINED


def script_counts(text: str) -> Counter[str]:
    """Letters of a text by script: `LATIN`, `CJK` (ideographs), `KANA` (both), `HANGUL`, ..."""
    return Counter(script for character in text if (script := _script(character)) is not None)


def candidates_by_script(counts: Counter[str], languages: Sequence[str], share: float) -> list[str]:
    """The languages that the leading script leaves; Japanese is told from Chinese by its kana."""
    letters = sum(counts.values())
    if not letters:
        return []
    east = counts["CJK"] + counts["KANA"]
    if east / letters >= share:
        if counts["KANA"] / east >= 0.1:
            return [language for language in languages if language == "ja"]
        chinese = [language for language in languages if language == "zh"]
        return chinese or [language for language in languages if language == "ja"]
    script, count = counts.most_common(1)[0]
    if count / letters < share:
        return []
    return [language for language in languages if SCRIPT_OF.get(language, "LATIN") == script]


@cache
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "")
    first = name.partition(" ")[0]
    if first in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"):
        return "KANA"
    return first or None


@cache
def _identifier(languages: tuple[str, ...]) -> object:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    unknown = sorted(set(languages) - set(identifier.labels))
    if unknown:
        raise ValueError(
            f"the language detector does not know {unknown[0]!r}; leave it out or give another detector "
            "(a class derived from analysis.steering.judging.LanguageDetector)"
        )
    identifier.set_languages(list(languages))
    return identifier


class ConceptLexicon:
    """Finds the words of concepts in text, with the lexicon that the labelling command writes."""

    def __init__(self, lexicon: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        self._patterns: dict[tuple[str, str], re.Pattern[str]] = {
            (concept, language): lexicon_pattern(entries)
            for concept, by_language in lexicon.items()
            for language, entries in by_language.items()
            if entries
        }

    def knows(self, concept: str, language: str) -> bool:
        return (concept, language) in self._patterns

    def spans(self, text: str, concept: str, languages: Sequence[str]) -> list[tuple[int, int]]:
        """Where words of the concept stand in the text, in any of the languages; sorted, not overlapping."""
        folded = fold(text)
        found = sorted(
            match.span()
            for language in languages
            if (pattern := self._patterns.get((concept, language))) is not None
            for match in pattern.finditer(folded)
        )
        kept: list[tuple[int, int]] = []
        for span in found:
            if not kept or span[0] >= kept[-1][1]:
                kept.append(span)
        return kept

    def hits(self, text: str, concept: str, languages: Sequence[str]) -> bool:
        return bool(self.spans(text, concept, languages))


def distinct_n(texts: Sequence[Sequence[int]], n: int) -> float:
    """Share of different n-grams among all n-grams of the texts (Li et al., NAACL 2016); 0 if there is none."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: Sequence[int], n: int = 4) -> float:
    """1 - distinct-n within one text (seq-rep-n of Welleck et al., ICLR 2020); 0 for texts shorter than n."""
    count = len(text) - n + 1
    return 1.0 - len({tuple(text[i : i + n]) for i in range(count)}) / count if count > 0 else 0.0


def entropy_bits(labels: Sequence[str]) -> float:
    """Entropy of the labels in bits: 0 when all texts are in one language."""
    if not labels:
        return 0.0
    shares = np.array(list(Counter(labels).values()), dtype=float) / len(labels)
    return float(-(shares * np.log2(shares)).sum()) + 0.0
