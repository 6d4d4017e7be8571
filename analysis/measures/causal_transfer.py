"""Do the neurons of one language carry a concept's words in another? Ablate them and look at the loss of those words.

The experts of a concept in a source language are set to zero, and the loss of the concept's own words is measured in
sentences of every language: language x language, without sampling and without a detector. What any ablation does is
taken off: as many experts of other concepts, and as many random units of the same sites (the controls of
`analysis.steering.conditions`). Experts are found on one half of the sentences, losses measured on the other.

The question of activation patching across languages (Dumas et al., ACL 2025) at the level of single neurons.

Shapes:  L languages   C concepts   K experts   B texts of a batch   T tokens   M scored tokens
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.concepts.concept_set import ConceptSet
from analysis.concepts.families import STRATA
from analysis.concepts.lexicon import read_lexicon
from analysis.experts.table import ExpertTable, find_experts, forcing_of
from analysis.extraction.encoding import Batch, Encoded
from analysis.extraction.hooks import force_units
from analysis.extraction.losses import token_losses
from analysis.extraction.options import Extraction
from analysis.extraction.replicas import deal_batches
from analysis.extraction.sites import Site
from analysis.measures.overlap import strata_of
from analysis.measures.text_analysis import ConceptAnalysis, WordAnalysis, mean_row
from analysis.snapshots import Snapshot
from analysis.steering.conditions import random_units
from analysis.steering.judging import ConceptLexicon

logger = logging.getLogger(__name__)

CONDITIONS = ("experts", "mismatched", "random")


@dataclass(kw_only=True)
class CausalTransfer(WordAnalysis, ConceptAnalysis):
    """Loss of a concept's words under ablation of its experts, minus that under ablation of others.

    Rows, in nats per token of the words, from `language` (whose experts are ablated) to `other_language` (whose
    sentences are read), with intervals over concepts:

    - `causal_transfer`: rise of the loss by the concept's experts minus that by as many experts of other concepts. Also
      overall (mean over pairs of different languages, clones left out) and over the pairs of each stratum in
      `condition` (those of `ConceptOverlap`), with the concepts one by one. Chance 0.
    - `causal_transfer_random`: the same minus as many random units of the same sites. Chance 0.
    - `causal_own`: `causal_transfer` where both languages are the same, mean over languages without clones: the most to
      be expected; also per concept.
    - `ablation` (condition `experts`, `mismatched`, `random`): the rise of the loss itself.

    Raises (when measuring):
        FileNotFoundError, ValueError: see `load_concepts`, `read_lexicon` and `find_experts`; or fewer than two
            languages or concepts, or a loss that is not finite.
    """

    default_name: ClassVar[str] = "causal_transfer"
    headlines: ClassVar[tuple[str, ...]] = ("causal_transfer", "causal_own")
    version: ClassVar[int] = 3
    positive: ClassVar[tuple[str, ...]] = ("k", "mismatched", "texts_per_concept", "min_positives")
    fractions: ClassVar[tuple[str, ...]] = ("share",)

    k: int = 500
    """Experts per concept and language that are ablated."""
    share: float | None = None
    """Instead of `k`: share of all units."""
    site_set: str | list[str] = "linear"
    """Set of sites or list of kinds, see `analysis.extraction.sites.SITE_SETS`."""
    pool: Literal["max", "mean", "last"] = "max"
    mismatched: int = 2
    """Other concepts whose experts are ablated for comparison: those that share the fewest experts."""
    texts_per_concept: int = 20
    """Held-out sentences of each concept and language."""

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        words = ConceptLexicon(read_lexicon(self.lexicon_file))
        concept_set = self.load(snapshot.clones, concepts=self.only_concepts)
        if len(concept_set.concepts) < 2:
            raise ValueError(
                f"{self.name}: {self.concepts} has only {concept_set.concepts[0]!r}; two concepts are needed"
            )
        table = find_experts(
            snapshot,
            concept_set.half(0),
            site_set=self.site_set,
            k=self.k,
            share=self.share,
            extraction=self.extraction,
        )
        held_out = concept_set.half(1)
        rises = np.full((len(CONDITIONS), *table.experts.units.shape[:2], len(table.languages)), np.nan)
        for place, concept in enumerate(table.concepts):
            texts = read_words(snapshot, held_out, concept, words, self.texts_per_concept, self.extraction)
            plain = texts.losses(snapshot, {}, self.extraction, "without an ablation")
            for source in range(len(table.languages)):
                for number, condition in enumerate(CONDITIONS):
                    forced = self._ablations(table, condition, source, place)
                    doing = f"with {condition!r} of {table.languages[source]!r} ablated"
                    losses = [texts.losses(snapshot, forcing, self.extraction, doing) for forcing in forced]
                    rises[number, source, place] = np.mean([found - plain for found in losses], axis=0)
        strata = strata_of(concept_set, snapshot.clones)
        yield from self._rows(table, np.moveaxis(rises, 2, 3), strata, set(snapshot.clones))

    def _ablations(self, table: ExpertTable, condition: str, source: int, concept: int) -> list[Mapping[Site, Tensor]]:
        """Units to set to zero, one or several sets."""
        names, language = table.concepts, table.languages[source]
        if condition == "mismatched":
            own = set(table.experts.units[source, concept].tolist())
            common = [len(own & set(units.tolist())) for units in table.experts.units[source]]
            others = [index for index in np.argsort(common, kind="stable").tolist() if index != concept]
            chosen = others[: self.mismatched]
        else:
            chosen = [concept]
        found = [
            {site: units for site, (units, _) in forcing_of(table, names[index], language).items()} for index in chosen
        ]
        return [random_units(found[0], [self.seed, concept, source])] if condition == "random" else list(found)

    def _rows(
        self, table: ExpertTable, rises: np.ndarray, strata: Mapping[tuple[str, str], str], clones: Collection[str]
    ) -> Iterator[Row]:
        """From rises (conditions, L, L, C): source, then read language."""
        languages = table.languages
        stratum = np.array([[strata.get((min(i, j), max(i, j)), "own") for j in languages] for i in languages])
        natural = np.array([[not {i, j} & set(clones) for j in languages] for i in languages])
        own, apart = natural & (stratum == "own"), stratum != "own"
        groups: dict[str | None, np.ndarray] = {None: natural & apart if (natural & apart).any() else apart}
        groups |= {name: stratum == name for name in STRATA if (stratum == name).any()}
        gains = {"causal_transfer": rises[0] - rises[1], "causal_transfer_random": rises[0] - rises[2]}
        for metric, gain in gains.items():
            for condition, pairs in groups.items():
                yield from self._over_concepts(table, metric, _nanmean(gain[pairs]), condition)
            yield from _by_pair(table, metric, gain)
        yield from self._over_concepts(table, "causal_own", _nanmean(gains["causal_transfer"][own]), None)
        for condition, rise in zip(CONDITIONS, rises, strict=True):
            yield from _by_pair(table, "ablation", rise, condition=condition)

    @staticmethod
    def _over_concepts(table: ExpertTable, metric: str, values: np.ndarray, condition: str | None) -> Iterator[Row]:
        """The mean over concepts of `values` (C,), then each of them."""
        yield from _mean_row(table, metric, values, condition=condition)
        for concept, value in zip(table.concepts, values, strict=True):
            if np.isfinite(value):
                yield Row(metric=metric, value=value, concept=concept, condition=condition, chance=0.0)


@dataclass(frozen=True)
class ConceptWords:
    """Held-out sentences of one concept in all languages, and where its words stand in them."""

    concept: str
    encoded: Encoded
    wanted: tuple[np.ndarray, ...]
    """For each text (T,) bool: tokens of the concept's words."""
    owner: np.ndarray
    """(N,) index of each text's language."""
    num_languages: int

    def losses(
        self, snapshot: Snapshot, ablated: Mapping[Site, Tensor], extraction: Extraction, condition: str
    ) -> np.ndarray:
        """Mean loss of the words' tokens in each language, (L,) nats; NaN where there are none.

        Args:
            condition: what is done to the network, in words, for the error.

        Raises:
            ValueError: a loss that is not finite.
        """
        forcing = {site: (units, torch.zeros(len(units))) for site, units in ablated.items()}
        nats, tokens = np.zeros(len(self.owner)), np.zeros(len(self.owner))

        def run(model: PreTrainedModel, batch: Batch) -> None:
            wanted = torch.zeros_like(batch.content)
            for row, index in enumerate(batch.indices.tolist()):
                wanted[row, : len(self.wanted[index])] = torch.from_numpy(self.wanted[index])
            with force_units(model, forcing):
                losses, rows = token_losses(model, batch, wanted)
            if not bool(torch.isfinite(losses).all()):  # it would pass for a language without the concept's words
                raise ValueError(
                    f"causal transfer: the loss of the words of {self.concept!r} is not finite {condition}: weights "
                    "are broken or the precision overflows; measure in float32 (loading.dtype)"
                )
            places = batch.indices[rows].numpy()
            np.add.at(nats, places, losses.double().numpy())
            np.add.at(tokens, places, 1)

        if len(self.owner):
            deal_batches(snapshot.models, extraction.batches(snapshot, self.encoded), run)
        total = np.bincount(self.owner, tokens, self.num_languages)
        found = np.bincount(self.owner, nats, self.num_languages)
        return np.where(total > 0, found / np.maximum(total, 1), np.nan)


def read_words(
    snapshot: Snapshot,
    concept_set: ConceptSet,
    concept: str,
    words: ConceptLexicon,
    count: int,
    extraction: Extraction,
) -> ConceptWords:
    """Up to `count` positives of `concept` in every language that have one of its words behind their first token."""
    ids, content, wanted, owner = [], [], [], []
    for number, language in enumerate(concept_set.languages):
        pool = concept_set.pools[language]
        clone = snapshot.clones.get(language)
        taken = 0
        for index in pool.positives[concept].tolist():
            text = pool.texts[index]
            spans = words.spans(str(text), concept, [clone.of if clone is not None else language])
            if taken == count or not spans:
                continue
            encoded = extraction.encode(snapshot, [text])
            offsets = snapshot.tokenizer(str(text), return_offsets_mapping=True)["offset_mapping"]
            inside = [any(start < last and end > first for first, last in spans) for start, end in offsets]
            flags = np.array([a and b for a, b in zip(inside, encoded.content[0], strict=False)])
            if flags[1:].any():
                end = np.flatnonzero(flags)[-1] + 1  # a causal model reads nothing behind its last word
                ids.append(encoded.ids[0][:end])
                content.append(encoded.content[0][:end])
                wanted.append(flags[:end])
                owner.append(number)
                taken += 1
        if taken == 0:
            logger.warning("no sentence of %r in %s has one of its words", concept, language)
    places = np.array(owner, dtype=np.int64)
    return ConceptWords(concept, Encoded(ids, content), tuple(wanted), places, len(concept_set.languages))


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is a number, NaN where nothing is."""
    count = np.isfinite(values).sum(axis=0)
    return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)


def _by_pair(table: ExpertTable, metric: str, values: np.ndarray, **where: str) -> Iterator[Row]:
    """From every language to every language, from values (L, L, C)."""
    for i, language in enumerate(table.languages):
        for j, other in enumerate(table.languages):
            yield from _mean_row(table, metric, values[i, j], language=language, other_language=other, **where)


def _mean_row(table: ExpertTable, metric: str, values: np.ndarray, **where: str | None) -> Iterator[Row]:
    """The mean of what is a number in `values` (C,); no row if nothing is."""
    known = np.isfinite(values)
    if known.any():
        yield mean_row(metric, values[known], table.clusters[known], **where)
