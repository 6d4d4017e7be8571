"""Generated texts of a steering experiment with their settings and judgements, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from analysis.steering.judging import UNDETERMINED, ConceptLexicon, LanguageDetector, repetition


@dataclass
class Written:
    """One generated text."""

    condition: str
    concept: str | None
    """The concept that is judged; None without intervention, where it is judged for every concept."""
    source: str | None
    """Language in which the held units were found."""
    k: int
    """Number of held units asked for (fewer where a band of layers is)."""
    prompt: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    language: str = UNDETERMINED
    hit_languages: dict[str, set[str]] = field(default_factory=dict)
    """Concept to the languages whose words of it occur in the text."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """Where in the text words of its concept stand."""
    expert_hits: dict[str, float] = field(default_factory=dict)
    """Concept to whether its units find it in the text (a mean where the text is read in several languages)."""
    bits_per_byte: float | None = None
    """Under the unforced model; None for a text without content."""
    bits_per_byte_judge: float | None = None

    @property
    def kind(self) -> str:
        return self.condition if self.condition == "none" else f"{self.condition}@{self.k}"

    @property
    def repetition(self) -> float:
        return repetition(self.tokens)


def judge_language_and_words(
    written: Sequence[Written],
    detector: LanguageDetector,
    outputs: Sequence[str],
    lexicon: ConceptLexicon,
    concepts: Sequence[str],
    languages: Sequence[str],
) -> None:
    """Fill in the language of every text (one of `outputs`) and the concept words of `languages` in it."""
    for entry, language in zip(written, detector.detect([w.text for w in written], outputs), strict=True):
        entry.language = language
    for entry in written:
        # without intervention a text is judged for every concept: that is the level to compare with
        for concept in concepts if entry.concept is None else (entry.concept,):
            entry.hit_languages[concept] = {code for code in languages if lexicon.hits(entry.text, concept, [code])}
        if entry.concept is not None:
            entry.spans = lexicon.spans(entry.text, entry.concept, languages)


def texts_table(written: Sequence[Written], prompts: Sequence[str]) -> pa.Table:
    """All texts with settings and judgements, one row each; hits are null where nothing was held."""
    forced = [w.concept is not None for w in written]
    return pa.table(
        {
            "condition": [w.condition for w in written],
            "k": pa.array([w.k for w in written], pa.int32()),
            "concept": pa.array([w.concept for w in written], pa.string()),
            "source": pa.array([w.source for w in written], pa.string()),
            "prompt": [prompts[w.prompt] for w in written],
            "seed": pa.array([w.seed for w in written], pa.int32()),
            "text": [w.text for w in written],
            "num_tokens": pa.array([len(w.tokens) for w in written], pa.int32()),
            "language": [w.language for w in written],
            "hit": pa.array([bool(w.hit_languages[w.concept]) if w.concept else None for w in written], pa.bool_()),
            "hit_languages": pa.array(
                [sorted(w.hit_languages[w.concept]) if w.concept else [] for w in written], pa.list_(pa.string())
            ),
            "hit_spans": pa.array([[x for span in w.spans for x in span] for w in written], pa.list_(pa.int32())),
            "hit_experts": pa.array(
                [
                    bool(w.expert_hits[str(w.concept)]) if held and w.expert_hits else None
                    for w, held in zip(written, forced, strict=True)
                ],
                pa.bool_(),
            ),
            "bits_per_byte": pa.array([w.bits_per_byte for w in written], pa.float64()),
            "bits_per_byte_judge": pa.array([w.bits_per_byte_judge for w in written], pa.float64()),
            "repetition": pa.array([w.repetition for w in written], pa.float64()),
        }
    )
