"""Does a text carry a concept? Asked of the concept's own units in the unforced model, without words or a probe.

Generated text is read by the unforced model, and the units that detect the concept best say whether it is there. So
that this is not the forcing looking at itself, the sentences are split in two halves
(`ConceptSet.half`): the units that are forced come from one half, the units that read from the other.

A text's score is the mean standardised response of the reading units, (r - off_mean) / (on_mean - off_mean), 0 for an
average negative and 1 for an average positive of the units' own half. Units were chosen for their success there, so on
other text they are less extreme, and 0.5 would be too strict: the threshold is the midpoint between the mean scores of
the positives and of the negatives of the *other* half. How well it tells those apart is reported beside every hit rate.

Shapes:  U units of one site   N texts   C concepts   K reading units
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from analysis.base import Row
from analysis.concepts.concept_set import ConceptPool, ConceptSet
from analysis.experts.table import ExpertTable, find_experts
from analysis.extraction.options import Extraction
from analysis.extraction.responses import iter_responses
from analysis.snapshots import Snapshot
from analysis.steering.fluency import with_content
from analysis.steering.generated import Setting
from analysis.steering.rows import interval_of

CLIP = (-1.0, 2.0)
"""Standardised responses are cut here, so that one unit with hardly any contrast cannot decide alone."""


@dataclass(frozen=True)
class Reading:
    """What the units say about the texts of every language."""

    hits: Mapping[str, np.ndarray]
    """Language to (C, N) bool: which concepts its texts carry; concepts in the order of the concept set."""
    accuracy: Mapping[str, np.ndarray]
    """Language to (C,) balanced accuracy on labelled sentences that the units were not chosen on; 0.5 is chance."""


def read_concepts(
    snapshot: Snapshot,
    chosen_on: ConceptSet,
    held_out: ConceptSet,
    texts: Mapping[str, Sequence[str]],
    *,
    k: int,
    site_set: str | Sequence[str],
    extraction: Extraction,
) -> Reading:
    """Which of the concepts the texts of each language carry.

    Args:
        chosen_on: sentences by which the reading units are found.
        held_out: other sentences of the same concepts and languages, for the threshold and its accuracy.
        texts: language to texts, each with content.
        k: number of reading units per concept and language.

    Raises:
        ValueError: as `analysis.experts.table.find_experts`.
    """
    table = find_experts(snapshot, chosen_on, site_set=site_set, k=k, extraction=extraction)
    lists = [[*held_out.pools[language].texts, *texts.get(language, ())] for language in chosen_on.languages]
    scores = _scores(snapshot, table, lists, extraction)
    hits, accuracy = {}, {}
    for language, values in zip(chosen_on.languages, scores, strict=True):
        labelled = held_out.pools[language]
        threshold, accuracy[language] = _threshold(values, labelled, chosen_on.concepts)
        hits[language] = values[:, len(labelled.texts) :] > threshold[:, None]
    return Reading(hits, accuracy)


def judge_by_experts(
    snapshot: Snapshot,
    texts: Sequence[str],
    settings: Sequence[Setting],
    written_in: Sequence[str],
    chosen_on: ConceptSet,
    held_out: ConceptSet,
    sources: Sequence[str],
    *,
    k: int,
    site_set: str | Sequence[str],
    extraction: Extraction,
    seed: int,
) -> tuple[list[dict[str, float]], list[Row]]:
    """For every text, which concepts their units find in it; and `check_accuracy` per language and overall.

    A text is read in the language it is judged to be in, if it is one of the concept set, else in its source language
    (without intervention: in all of `sources`). A text without content carries nothing. Options as `read_concepts`.
    """
    concepts = chosen_on.concepts
    places: dict[str, list[int]] = {language: [] for language in chosen_on.languages}
    readable = with_content(snapshot.tokenizer, texts)
    for index in sorted(readable):
        source = settings[index].source
        undetermined = sources if source is None else (source,)
        for language in (written_in[index],) if written_in[index] in places else undetermined:
            places[language].append(index)
    lists = {language: [texts[index] for index in indices] for language, indices in places.items()}
    reading = read_concepts(snapshot, chosen_on, held_out, lists, k=k, site_set=site_set, extraction=extraction)
    found: dict[int, list[np.ndarray]] = {}
    for language, indices in places.items():
        for column, index in enumerate(indices):
            found.setdefault(index, []).append(reading.hits[language][:, column])
    hits = []
    for index, setting in enumerate(settings):
        share = np.mean(found[index], axis=0) if index in found else np.zeros(len(concepts))
        asked = concepts if setting.concept is None else (setting.concept,)
        hits.append({concept: float(share[concepts.index(concept)]) for concept in asked})
    rows = []
    overall = np.mean([*reading.accuracy.values()], axis=0)
    for name, values in [*reading.accuracy.items(), (None, overall)]:
        low, high = interval_of(values, held_out.clusters, seed)
        value = float(values.mean())
        rows.append(Row(metric="check_accuracy", value=value, language=name, chance=0.5, low=low, high=high))
    return hits, rows


def _scores(
    snapshot: Snapshot, table: ExpertTable, lists: Sequence[Sequence[str]], extraction: Extraction
) -> list[np.ndarray]:
    """For every language (C, N): mean standardised response of its reading units to its texts."""
    num_concepts = len(table.concepts)
    contrast = table.on_mean - table.off_mean
    useful = contrast > 0
    site_of = table.space.site_indices(table.experts.units)
    index_of = {site: number for number, site in enumerate(table.space.sites)}
    sites = [table.space.sites[number] for number in np.unique(site_of[useful])]
    sums = [np.zeros((num_concepts, len(texts))) for texts in lists]
    if not sites:
        return sums
    ends = np.cumsum([len(texts) for texts in lists]).tolist()
    everything = [text for texts in lists for text in texts]
    for responses in iter_responses(snapshot, everything, sites, extraction):
        number = index_of[responses.site]
        first = int(table.space.offsets[number]) + responses.first_unit
        for language, (texts, end) in enumerate(zip(lists, ends, strict=True)):
            values = responses.values[:, end - len(texts) : end]
            for concept in range(num_concepts):
                units = table.experts.units[language, concept]
                here = useful[language, concept] & (units >= first) & (units < first + len(values))
                if here.any():
                    chosen = values[torch.from_numpy(units[here] - first).to(values.device)].cpu().numpy()
                    low = table.off_mean[language, concept, here, None]
                    scaled = (chosen - low) / contrast[language, concept, here, None]
                    sums[language][concept] += scaled.clip(*CLIP).sum(axis=0)
    counts = np.maximum(useful.sum(axis=2), 1)
    return [values / counts[language, :, None] for language, values in enumerate(sums)]


def _threshold(scores: np.ndarray, labelled: ConceptPool, concepts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Midpoint (C,) between the mean scores of positives and negatives, and its balanced accuracy (C,)."""
    threshold, accuracy = np.zeros(len(concepts)), np.zeros(len(concepts))
    for index, concept in enumerate(concepts):
        positives = scores[index, labelled.positives[concept].numpy()]
        negatives = scores[index, labelled.negatives[concept].numpy()]
        threshold[index] = (positives.mean() + negatives.mean()) / 2
        accuracy[index] = ((positives > threshold[index]).mean() + (negatives <= threshold[index]).mean()) / 2
    return threshold, accuracy
