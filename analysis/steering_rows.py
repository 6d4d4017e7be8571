"""Rows of a steering experiment: shares and means of judged texts, each beside the level without intervention.

Intervals come from a bootstrap over concepts, the units of generalisation; where there is one concept only, over seeds.
Called by `analysis.steering`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from analysis.base import Row
from analysis.judging import UNDETERMINED, distinct_n, entropy_bits, repetition, self_bleu
from analysis.statistics import bootstrap_interval


@dataclass
class Written:
    """One generated text with its settings and judgements."""

    condition: str
    concept: str | None
    """None without intervention."""
    source: str | None
    k: int
    prompt: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    language: str = UNDETERMINED
    hit_languages: dict[str, set[str]] = field(default_factory=dict)
    """Concept to the languages whose words of it occur in the text."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    bits_per_byte: float | None = None
    bits_per_byte_judge: float | None = None

    @property
    def kind(self) -> str:
        return self.condition if self.condition == "none" else f"{self.condition}@{self.k}"

    @property
    def repetition(self) -> float:
        return repetition(self.tokens)


Measure = Callable[[Sequence[Written]], float | None]

OF_A_SET = ("language_entropy", "distinct_2")
"""Measures of a set of texts, which have no value for a single one."""


def rows_of(written: Sequence[Written], sources: Sequence[str], outputs: Sequence[str], *, seed: int) -> Iterator[Row]:
    """All rows of the experiment; see `analysis.steering.Steering` for what they mean."""
    plain = [entry for entry in written if entry.condition == "none"]
    yield from _plain_rows(plain, outputs, seed)
    concepts = list(dict.fromkeys(entry.concept for entry in written if entry.concept is not None))
    unforced_hits = {concept: _share(bool(entry.hit_languages[concept]) for entry in plain) for concept in concepts}
    for kind in dict.fromkeys(entry.kind for entry in written if entry.condition != "none"):
        group = [entry for entry in written if entry.kind == kind]
        for source in sources:
            yield from _source_rows(group, plain, kind, source, outputs, unforced_hits, seed)
        yield from _concept_rows(group, kind, concepts, unforced_hits)
        chance = _mean(list(unforced_hits.values())) if plain else None
        yield _row("concept_hit", group, _hit, kind, None, seed, chance)


def _plain_rows(plain: Sequence[Written], outputs: Sequence[str], seed: int) -> Iterator[Row]:
    if not plain:
        return
    for language in (*outputs, UNDETERMINED):
        values = np.array([entry.language == language for entry in plain], dtype=float)
        low, high = bootstrap_interval(values, seed=seed)
        yield Row(
            metric="output_language",
            value=float(values.mean()),
            kind="none",
            other_language=language,
            low=float(low),
            high=float(high),
        )
    yield from _quality_rows(plain, "none", None, seed)


def _source_rows(
    group: Sequence[Written],
    plain: Sequence[Written],
    kind: str,
    source: str,
    outputs: Sequence[str],
    unforced_hits: Mapping[str, float],
    seed: int,
) -> Iterator[Row]:
    mine = [entry for entry in group if entry.source == source]
    for language in (*outputs, UNDETERMINED):
        chance = _share(entry.language == language for entry in plain) if plain else None
        row = _row("output_language", mine, partial(_language_share, language), kind, source, seed, chance)
        yield Row(**{**_fields(row), "other_language": language})
    chance = _mean(list(unforced_hits.values())) if plain else None
    yield _row("concept_hit", mine, _hit, kind, source, seed, chance)
    yield _row("concept_hit_source", mine, partial(_hit_in, source, True), kind, source, seed)
    yield _row("concept_hit_other", mine, partial(_hit_in, source, False), kind, source, seed)
    yield from _quality_rows(mine, kind, source, seed)


def _concept_rows(
    group: Sequence[Written], kind: str, concepts: Sequence[str], unforced_hits: Mapping[str, float]
) -> Iterator[Row]:
    for concept in concepts:
        texts = [entry for entry in group if entry.concept == concept]
        yield Row(
            metric="concept_hit", value=_hit(texts), kind=kind, concept=concept, chance=unforced_hits.get(concept)
        )


def _quality_rows(texts: Sequence[Written], kind: str, source: str | None, seed: int) -> Iterator[Row]:
    measures: dict[str, Measure] = {
        "language_entropy": lambda t: entropy_bits([entry.language for entry in t]),
        "bits_per_byte": lambda t: _optional_mean(entry.bits_per_byte for entry in t),
        "bits_per_byte_judge": lambda t: _optional_mean(entry.bits_per_byte_judge for entry in t),
        "distinct_2": lambda t: distinct_n([entry.tokens for entry in t], 2),
        "repetition": lambda t: _mean([entry.repetition for entry in t]),
    }
    for metric, measure in measures.items():
        if measure(texts) is not None:
            yield _row(metric, texts, measure, kind, source, seed)
    yield Row(metric="self_bleu", value=self_bleu([entry.text for entry in texts]), kind=kind, language=source)


def _row(
    metric: str,
    texts: Sequence[Written],
    measure: Measure,
    kind: str,
    source: str | None,
    seed: int,
    chance: float | None = None,
) -> Row:
    """The measure's mean over concepts with its interval over concepts, or over seeds where there is one concept."""
    by_concept = len({entry.concept for entry in texts}) > 1
    groups: dict[object, list[Written]] = {}
    for entry in texts:
        groups.setdefault(entry.concept if by_concept else entry.seed, []).append(entry)
    values = [value for part in groups.values() if (value := measure(part)) is not None]
    # An entropy or a share of n-grams belongs to a set of texts, so with one concept all texts count together.
    value = _mean(values) if by_concept else measure(texts)
    assert value is not None
    if not by_concept and metric in OF_A_SET:
        return Row(metric=metric, value=value, kind=kind, language=source, chance=chance)
    low, high = bootstrap_interval(np.array(values), seed=seed)
    return Row(metric=metric, value=value, kind=kind, language=source, chance=chance, low=float(low), high=float(high))


def _fields(row: Row) -> dict:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _language_share(language: str, texts: Sequence[Written]) -> float:
    return _share(entry.language == language for entry in texts)


def _hit(texts: Sequence[Written]) -> float:
    return _share(bool(entry.hit_languages[entry.concept]) for entry in texts if entry.concept is not None)


def _hit_in(source: str, inside: bool, texts: Sequence[Written]) -> float:
    """Share of texts with a word of their concept in the source language (`inside`), or in any other language."""
    return _share(
        (source in entry.hit_languages[entry.concept])
        if inside
        else bool(entry.hit_languages[entry.concept] - {source})
        for entry in texts
        if entry.concept is not None
    )


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _optional_mean(values: Iterable[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return float(np.mean(kept)) if kept else None
