"""Rows of a steering experiment: shares and means of judged texts, each beside the level without intervention.

Intervals are over concepts, the units of generalisation, of which a group that depends on each other counts once; where
there is one concept only, those of shares are over its texts (too narrow, since texts of one seed share their random
numbers) and all others over seeds. A single value has no interval. An effect is the difference of the experts to one
control, paired: every concept and seed was written under both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from analysis.base import Row
from analysis.statistics import bootstrap_interval, paired_contrast, wilson_interval
from analysis.steering.generated import GeneratedText
from analysis.steering.judging import UNDETERMINED, distinct_n, entropy_bits

Judged = Callable[[GeneratedText, str, str], float]
"""What a text is worth for a concept and a source language. Without intervention a text has neither, so it is judged
for all of them: the mean is the level to compare with."""

Under = tuple[str, int | None]
"""Condition and K."""
NOTHING_HELD: Under = ("none", None)

SetMeasure = Callable[[Sequence[GeneratedText]], float | None]

EFFECTS = ("concept_hit", "concept_hit_other", "concept_in_other_language", "concept_hit_experts")
"""Judgements of which the difference to every control is a row of its own, `<name>_effect`."""

OF_A_SET = ("language_entropy", "distinct_2")
"""Measures of a set of texts, which have no value for a single one."""

IN_ANY_CASE: dict[str, Judged] = {
    "output_in_source_language": lambda text, concept, source: text.language == source,
    "concept_hit": lambda text, concept, source: bool(text.words.languages[concept]),
    "concept_hit_source": lambda text, concept, source: source in text.words.languages[concept],
    "concept_hit_other": lambda text, concept, source: bool(text.words.languages[concept] - {source}),
    "concept_in_source_language": lambda text, concept, source: (
        text.language == source and source in text.words.languages[concept]
    ),
    "concept_in_other_language": lambda text, concept, source: (
        text.language != source and text.language in text.words.languages[concept]
    ),
}


def rows_of(
    generated: Sequence[GeneratedText],
    clusters: Mapping[str, int],
    sources: Sequence[str],
    outputs: Sequence[str],
    *,
    seed: int,
) -> Iterator[Row]:
    """All rows of the experiment; `clusters` maps its concepts to their groups, see `ConceptSet.clusters`."""
    groups: dict[Under, list[GeneratedText]] = {}
    for entry in generated:
        groups.setdefault((entry.setting.condition, entry.setting.k), []).append(entry)
    plain = groups.get(NOTHING_HELD, [])
    measures = dict(IN_ANY_CASE)
    if all(entry.expert_hits is not None for entry in generated):
        measures["concept_hit_experts"] = lambda text, concept, source: (text.expert_hits or {})[concept]
    experiment = _Experiment(measures, plain, clusters, sources, outputs, seed)
    for (condition, k), group in groups.items():
        for row in experiment.group_rows(group):
            yield replace(row, condition=condition, k=k)
    for (condition, k), group in groups.items():
        if condition == "experts":
            for (control, places), others in groups.items():
                if control != "experts" and places in (k, None):
                    for row in experiment.effect_rows(group, others):
                        yield replace(row, condition=control, k=k)


@dataclass(frozen=True)
class _Experiment:
    """What is judged, of which concepts and languages."""

    measures: dict[str, Judged]
    plain: Sequence[GeneratedText]
    """The texts without intervention."""
    clusters: Mapping[str, int]
    """The concepts, and the group of each."""
    sources: Sequence[str]
    outputs: Sequence[str]
    seed: int

    @property
    def concepts(self) -> list[str]:
        return list(self.clusters)

    def effect_rows(self, experts: Sequence[GeneratedText], control: Sequence[GeneratedText]) -> Iterator[Row]:
        """Experts minus one control, overall and by source language: paired over concepts, or over seeds where there
        is one concept or one group of them."""
        groups = np.array([*self.clusters.values()])
        several = len(set(self.clusters.values())) > 1
        for metric in EFFECTS:
            if metric not in self.measures:
                continue
            for source in (None, *self.sources):
                mine = [entry for entry in experts if source in (None, entry.setting.source)]
                theirs = [one for one in control if source in (None, one.setting.source) or not one.setting.source]
                asked = self.sources if source is None else [source]
                pairs = [
                    tuple(_paired(self.measures[metric], texts, concept, asked) for texts in (mine, theirs))
                    for concept in self.concepts
                ]
                if several:
                    differences = [_mean([*one.values()]) - _mean([*other.values()]) for one, other in pairs]
                else:
                    seeds = set.intersection(*(set(one) & set(other) for one, other in pairs))
                    differences = [_mean([one[seed] - other[seed] for one, other in pairs]) for seed in sorted(seeds)]
                row = Row(metric=f"{metric}_effect", value=_mean(differences), language=source, chance=0.0)
                if len(differences) > 1:  # a single one has neither interval nor p
                    found = paired_contrast(np.array(differences), groups if several else None)
                    row = replace(row, low=found.low, high=found.high, p=found.p)
                yield row

    def group_rows(self, group: Sequence[GeneratedText]) -> Iterator[Row]:
        """The rows of one condition and K."""
        held = group[0].setting.concept is not None
        for metric, judged in self.measures.items():
            yield self.share_row(metric, judged, group)
        for metric, measure in SET_MEASURES.items():
            # the entropy over all source languages would mix the question with the answer
            if metric not in OF_A_SET or not held:
                yield from _set_row(metric, measure, group, None, self.clusters, self.seed)
        if not held:
            for output in (*self.outputs, UNDETERMINED):
                row = self.share_row("output_language", partial(_writes, output), group)
                yield replace(row, other_language=output)
            return
        for source in self.sources:
            yield from self.source_rows([entry for entry in group if entry.setting.source == source], source)
        for concept in self.concepts:
            texts = [entry for entry in group if entry.setting.concept == concept]
            row = self.share_row("concept_hit", self.measures["concept_hit"], texts, concepts=[concept])
            yield replace(row, concept=concept)

    def source_rows(self, texts: Sequence[GeneratedText], source: str) -> Iterator[Row]:
        """The rows of the texts of one source language."""
        judgements: list[tuple[str, Judged, str | None]] = [(*named, None) for named in self.measures.items()]
        judgements += [("output_language", partial(_writes, code), code) for code in (*self.outputs, UNDETERMINED)]
        judgements += [("concept_in_language", partial(_writes_and_names, code), code) for code in self.outputs]
        for metric, judged, output in judgements:
            row = self.share_row(metric, judged, texts, sources=[source])
            yield replace(row, language=source, other_language=output)
        for metric, measure in SET_MEASURES.items():
            yield from _set_row(metric, measure, texts, source, self.clusters, self.seed)

    def share_row(
        self,
        metric: str,
        judged: Judged,
        texts: Sequence[GeneratedText],
        *,
        concepts: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
    ) -> Row:
        """The mean over concepts, its interval, and as chance the same judgement on the texts of no intervention."""
        concepts, sources = concepts or self.concepts, sources or self.sources
        by_concept = _judge(judged, texts, concepts, sources)
        values, groups = by_concept[concepts[0]], None
        if len(concepts) > 1:
            values = [_mean(values) for values in by_concept.values()]
            groups = np.array([self.clusters[concept] for concept in concepts])
        low, high = _share_interval(values, groups, len(texts), self.seed)
        chance = None
        if self.plain and texts is not self.plain:
            chance = _mean([_mean(values) for values in _judge(judged, self.plain, concepts, sources).values()])
        return Row(metric=metric, value=_mean(values), chance=chance, low=low, high=high)


def _paired(judged: Judged, texts: Sequence[GeneratedText], concept: str, sources: Sequence[str]) -> dict[int, float]:
    """Seed to the mean judgement of its texts for a concept."""
    values: dict[int, list[float]] = {}
    for text in texts:
        if text.setting.concept in (concept, None):
            found = _judge(judged, [text], [concept], sources)[concept]
            values.setdefault(text.setting.seed, []).extend(found)
    return {seed: _mean(found) for seed, found in values.items()}


def _share_interval(
    values: Sequence[float], clusters: np.ndarray | None, num_texts: int, seed: int
) -> tuple[float, float]:
    """Interval of a share of texts over concepts (or texts), at least as wide as Wilson's for that many texts.

    So a rate without a single hit does not pretend to be exactly 0.
    """
    hits = min(num_texts, round(_mean(values) * num_texts))
    share, bounds = _mean(values), (*wilson_interval(hits, num_texts), *interval_of(values, clusters, seed))
    known = [share, *(bound for bound in bounds if bound is not None)]
    return max(0.0, min(known)), min(1.0, max(known))


def interval_of(
    values: Sequence[float], clusters: np.ndarray | None, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """95 % bounds of the mean over values (S,), of which a cluster counts once; none where only one counts."""
    if len(values if clusters is None else set(clusters.tolist())) < 2:
        return None, None
    low, high = bootstrap_interval(np.array(values), clusters=clusters, seed=seed)
    return float(low), float(high)


def _judge(
    judged: Judged, texts: Sequence[GeneratedText], concepts: Sequence[str], sources: Sequence[str]
) -> dict[str, list[float]]:
    """Concept to one value a text; a text of no intervention has one for every concept, its mean over `sources`."""
    values: dict[str, list[float]] = {concept: [] for concept in concepts}
    for text in texts:
        own, language = text.setting.concept, text.setting.source
        if own is not None and language is not None:
            values[own].append(float(judged(text, own, language)))
            continue
        for concept in concepts:
            values[concept].append(_mean([float(judged(text, concept, source)) for source in sources]))
    return values


def _writes(output: str, text: GeneratedText, concept: str, source: str) -> float:
    return text.language == output


def _writes_and_names(output: str, text: GeneratedText, concept: str, source: str) -> float:
    return text.language == output and output in text.words.languages[concept]


SET_MEASURES: dict[str, SetMeasure] = {
    "language_entropy": lambda texts: entropy_bits([entry.language for entry in texts]),
    "bits_per_byte": lambda texts: _optional_mean(entry.bits_per_byte for entry in texts),
    "bits_per_byte_judge": lambda texts: _optional_mean(entry.bits_per_byte_judge for entry in texts),
    "distinct_2": lambda texts: distinct_n([entry.tokens for entry in texts], 2),
    "repetition": lambda texts: _mean([entry.repetition for entry in texts]),
}


def _set_row(
    metric: str,
    measure: SetMeasure,
    texts: Sequence[GeneratedText],
    source: str | None,
    clusters: Mapping[str, int],
    seed: int,
) -> Iterator[Row]:
    """The measure's mean over concepts with its interval over concepts, or over seeds where there is one concept.

    Nothing where no text has a value (bits per byte of empty texts).
    """
    by_concept = len({entry.setting.concept for entry in texts}) > 1
    groups: dict[Any, list[GeneratedText]] = {}
    for entry in texts:
        groups.setdefault(entry.setting.concept if by_concept else entry.setting.seed, []).append(entry)
    measured = {name: value for name, part in groups.items() if (value := measure(part)) is not None}
    values = [*measured.values()]
    # An entropy or a share of n-grams belongs to a set of texts, so with one concept all texts count together.
    value = _mean(values) if by_concept else measure(texts)
    if value is None or not values:
        return
    if not by_concept and metric in OF_A_SET:
        yield Row(metric=metric, value=value, language=source)
        return
    members = np.array([clusters[concept] for concept in measured]) if by_concept else None
    low, high = interval_of(values, members, seed)
    yield Row(metric=metric, value=value, language=source, low=low, high=high)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _optional_mean(values: Iterable[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return float(np.mean(kept)) if kept else None
