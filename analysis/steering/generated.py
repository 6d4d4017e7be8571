"""Generated texts of a steering experiment with their settings and judgements, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from analysis.steering.judging import ConceptLexicon, repetition


@dataclass(frozen=True)
class Setting:
    """Under which one text is written."""

    condition: str
    concept: str | None
    """The concept that is judged; None without intervention, where it is judged for every concept."""
    source: str | None
    """Language in which the held units were found."""
    k: int | None
    """Number of held units asked for (fewer where a band of layers is); None without intervention."""
    prompt: int
    seed: int


@dataclass(frozen=True)
class Words:
    """Words of concepts in one text."""

    languages: Mapping[str, frozenset[str]]
    """Concept to the languages whose words of it occur in the text."""
    spans: tuple[tuple[int, int], ...] = ()
    """Where in the text words of its own concept stand."""


@dataclass(frozen=True)
class GeneratedText:
    """One generated text and everything that was judged of it."""

    setting: Setting
    tokens: tuple[int, ...]
    text: str
    language: str
    """One of the study's languages, or `undetermined`."""
    words: Words
    expert_hits: Mapping[str, float] | None = None
    """Concept to whether its units find it in the text (a mean where the text is read in several languages)."""
    bits_per_byte: float | None = None
    """Under the unforced model; None for a text without content."""
    bits_per_byte_judge: float | None = None

    @property
    def repetition(self) -> float:
        return repetition(self.tokens)


def find_words(
    text: str, concept: str | None, lexicon: ConceptLexicon, concepts: Sequence[str], languages: Sequence[str]
) -> Words:
    """Words of its concept in a text, in any of `languages`; of every concept where it has none of its own."""
    # without intervention a text is judged for every concept: that is the level to compare with
    found = {
        name: frozenset(code for code in languages if lexicon.hits(text, name, [code]))
        for name in (concepts if concept is None else (concept,))
    }
    return Words(found, () if concept is None else tuple(lexicon.spans(text, concept, languages)))


def texts_table(generated: Sequence[GeneratedText], prompts: Sequence[str]) -> pa.Table:
    """All texts with settings and judgements, one row each; hits are null where nothing was held."""
    settings = [entry.setting for entry in generated]
    named = [entry.words.languages[concept] if (concept := entry.setting.concept) else None for entry in generated]
    found = [entry.expert_hits and entry.expert_hits.get(str(entry.setting.concept)) for entry in generated]
    return pa.table(
        {
            "condition": [setting.condition for setting in settings],
            "k": pa.array([setting.k or 0 for setting in settings], pa.int32()),
            "concept": pa.array([setting.concept for setting in settings], pa.string()),
            "source": pa.array([setting.source for setting in settings], pa.string()),
            "prompt": [prompts[setting.prompt] for setting in settings],
            "seed": pa.array([setting.seed for setting in settings], pa.int32()),
            "text": [entry.text for entry in generated],
            "num_tokens": pa.array([len(entry.tokens) for entry in generated], pa.int32()),
            "language": [entry.language for entry in generated],
            "hit": pa.array([None if codes is None else bool(codes) for codes in named], pa.bool_()),
            "hit_languages": pa.array([sorted(codes or ()) for codes in named], pa.list_(pa.string())),
            "hit_spans": pa.array(
                [[x for span in entry.words.spans for x in span] for entry in generated], pa.list_(pa.int32())
            ),
            "hit_experts": pa.array([None if hit is None else bool(hit) for hit in found], pa.bool_()),
            "bits_per_byte": pa.array([entry.bits_per_byte for entry in generated], pa.float64()),
            "bits_per_byte_judge": pa.array([entry.bits_per_byte_judge for entry in generated], pa.float64()),
            "repetition": pa.array([entry.repetition for entry in generated], pa.float64()),
        }
    )
