"""Does a concept have one direction in all languages? Beside its neurons: what if no single unit carries it?

Difference of means at the residual stream per language and concept (`analysis.geometry.directions`), layer by layer.

Shapes:  Y layers   L languages   C concepts   N sentences of one language   D hidden size
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch

from analysis.base import Kept, Row
from analysis.concepts.concept_set import ConceptSet
from analysis.extraction.sites import find_sites
from analysis.extraction.states import iter_sentence_states
from analysis.geometry.directions import HalfLabels, score_directions
from analysis.measures.text_analysis import ConceptAnalysis, mean_row
from analysis.snapshots import Snapshot


@dataclass(kw_only=True)
class ConceptDirections(ConceptAnalysis):
    """Held-out transfer of concept directions between languages.

    Rows, with intervals over concepts (groups that depend on each other count once), per layer (embeddings: -1) and
    (without layer) as the mean over layers:

    - `direction_transfer`: AUROC of the direction of `language` on held-out sentences of `other_language`; per layer
      and overall the mean over different languages; as the mean over layers also for every two languages, from and
      to, and per concept. Chance: directions and labels after the labels have been shuffled.
    - `direction_own`: the same within a language: the most to be expected.
    - `direction_cosine`: cosine of two languages' directions, from different halves of the sentences (chance 0); as the
      mean over layers also per pair. `direction_cosine_own`: of a language's own between the halves.

    Raises (when measuring):
        FileNotFoundError, ValueError: see `load_concepts` and `iter_sentence_states`; or a single language.
    """

    default_name: ClassVar[str] = "concept_directions"
    version: ClassVar[int] = 2
    positive: ClassVar[tuple[str, ...]] = ("min_positives", "shuffles")

    only_concepts: list[str] = field(default_factory=list)
    """Concepts to use; none means all of the file."""
    pool: Literal["mean", "weighted", "last"] = "mean"
    """From tokens to a sentence vector, see `iter_sentence_states`."""
    shuffles: int = 5
    """Shuffles of the labels for the chance level."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._labellings = Kept()

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        concept_set = self.load(snapshot.clones, concepts=self.only_concepts)
        labellings: list[list[HalfLabels]] = self._labellings.get(concept_set, lambda: self._label(concept_set))
        pools = [concept_set.pools[language] for language in concept_set.languages]
        texts = [text for pool in pools for text in pool.texts]
        sites = find_sites(snapshot.model, "hidden")
        auroc, chance, cosine = [], [], []
        for _, vectors in iter_sentence_states(snapshot, texts, sites, self.extraction):
            states = vectors.split([len(pool.texts) for pool in pools])
            found, *null = (score_directions(states, labels) for labels in labellings)
            auroc.append(found.auroc)
            cosine.append(found.cosine)
            chance.append(np.mean([one.auroc for one in null], axis=0))
        layers = [site.layer for site in sites]
        yield from _rows(concept_set, layers, np.stack(auroc), np.stack(chance), np.stack(cosine))

    def _label(self, concept_set: ConceptSet) -> list[list[HalfLabels]]:
        """Labels of every language, as they are and shuffled."""
        shuffled = [concept_set.shuffled(self.seed + number) for number in range(self.shuffles)]
        return [_labels(labelling) for labelling in (concept_set, *shuffled)]


def _labels(concept_set: ConceptSet) -> list[HalfLabels]:
    """Labels of every language by half."""
    halves = [concept_set.half(0), concept_set.half(1)]
    found = []
    for language in concept_set.languages:
        size = len(concept_set.pools[language].texts)
        sides = []
        for side in ("positives", "negatives"):
            member = torch.zeros(2, len(concept_set.concepts), size, dtype=torch.bool)
            for number, half in enumerate(halves):
                for place, concept in enumerate(concept_set.concepts):
                    member[number, place, getattr(half.pools[language], side)[concept]] = True
            sides.append(member)
        found.append(HalfLabels(*sides))
    return found


def _rows(
    concept_set: ConceptSet, layers: list[int], auroc: np.ndarray, chance: np.ndarray, cosine: np.ndarray
) -> Iterator[Row]:
    """From arrays (Y, L, L, C)."""
    languages, clusters = concept_set.languages, concept_set.clusters
    own = np.eye(len(languages), dtype=bool)
    for metric, values, null, chosen in (
        ("direction_transfer", auroc, chance, ~own),
        ("direction_own", auroc, chance, own),
        ("direction_cosine", cosine, np.zeros_like(cosine), ~own),
        ("direction_cosine_own", cosine, np.zeros_like(cosine), own),
    ):
        by_layer, null_by_layer = values[:, chosen].mean(axis=1), null[:, chosen].mean(axis=1)  # (Y, C)
        for place, layer in enumerate(layers):
            yield mean_row(metric, by_layer[place], clusters, chance=float(null_by_layer[place].mean()), layer=layer)
        yield mean_row(metric, by_layer.mean(axis=0), clusters, chance=float(null_by_layer.mean(axis=0).mean()))
    for concept, value, null in zip(
        concept_set.concepts, auroc[:, ~own].mean(axis=(0, 1)), chance[:, ~own].mean(axis=(0, 1)), strict=True
    ):
        yield Row(metric="direction_transfer", value=value, concept=concept, chance=null)
    for i, language in enumerate(languages):
        for j, other in enumerate(languages):
            pair = {"language": language, "other_language": other}
            if i != j:
                level = float(chance[:, i, j].mean(axis=0).mean())
                yield mean_row("direction_transfer", auroc[:, i, j].mean(axis=0), clusters, chance=level, **pair)
            if language < other:
                yield mean_row("direction_cosine", cosine[:, i, j].mean(axis=0), clusters, **pair)
