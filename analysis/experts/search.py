"""The search behind `analysis.experts.table`: score several labellings in one walk, and keep the best units of each.

Main labels, the labels of each half and shuffled labels of the same sentences are so many more concepts to the same
sort of a unit's responses.

Shapes:  U units of one update   C concepts   L languages   K experts
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from analysis.concepts.dataset import ConceptSet
from analysis.experts.average_precision import Labels, measure_expertise, settle_ties
from analysis.experts.topk import TopUnits


@dataclass(frozen=True)
class Experts:
    """The top units of every (language, concept) by one labelling of the sentences."""

    units: np.ndarray
    """(L, C, K) int64 flat ids, best first."""
    ap: np.ndarray
    """(L, C, K, L) float32: AP of each expert for its concept in every language."""
    ap_of_others: np.ndarray
    """(L, C, K, L) float32: its mean AP for the other concepts in every language (its own AP if there are none)."""


def shuffle_labels(concept_set: ConceptSet, seed: int) -> ConceptSet:
    """Labels drawn anew among each concept's labelled sentences, as many positives as before.

    The draw is a function of seed, concept and the sentence's key, so translations of a sentence keep a common label.
    """
    pools = {}
    for language, pool in concept_set.pools.items():
        yes, no = {}, {}
        for concept in concept_set.concepts:
            labelled = torch.cat([pool.positives[concept], pool.negatives[concept]]).tolist()
            prefix = f"shuffle:{seed}:{concept}:"
            labelled.sort(key=lambda index: hashlib.sha256((prefix + pool.keys[index]).encode()).digest())
            count = len(pool.positives[concept])
            yes[concept] = torch.tensor(sorted(labelled[:count]))
            no[concept] = torch.tensor(sorted(labelled[count:]))
        pools[language] = replace(pool, positives=yes, negatives=no)
    return replace(concept_set, pools=pools)


class Scorer:
    """Scores several labellings of the same sentences in one walk down each unit's ranking."""

    def __init__(self, labellings: Sequence[ConceptSet]) -> None:
        self.num_labellings = len(labellings)
        self.labels = []
        for language in labellings[0].languages:
            pools = [labelling.pools[language] for labelling in labellings]
            sides = [[pool.positives for pool in pools], [pool.negatives for pool in pools]]
            yes, no = ([part[name] for part in side for name in labellings[0].concepts] for side in sides)
            self.labels.append(Labels(len(pools[0].texts), yes, no))

    def score(self, values: Sequence[Tensor]) -> tuple[list[np.ndarray], np.ndarray]:
        """AP (L, C, U) by each labelling, and AUROC (L, C, U) by the first, from each language's responses."""
        found = [measure_expertise(settle_ties(part), labels) for part, labels in zip(values, self.labels, strict=True)]
        ap = np.stack([expertise.ap.cpu().numpy() for expertise in found])
        auroc = np.stack([expertise.auroc.cpu().numpy() for expertise in found])
        return np.split(ap, self.num_labellings, axis=1), np.split(auroc, self.num_labellings, axis=1)[0]


class Search:
    """The running top-K of one labelling of the sentences."""

    def __init__(self, concept_set: ConceptSet, k: int) -> None:
        self.pools = [concept_set.pools[language] for language in concept_set.languages]
        self.concepts = concept_set.concepts
        self.num_groups = len(self.pools) * len(self.concepts)
        self.top = TopUnits(self.num_groups, k)

    def update(
        self,
        ap: np.ndarray,
        kept: np.ndarray | None,
        first: int,
        describe: tuple[Sequence[Tensor], np.ndarray] | None = None,
    ) -> None:
        """Let the units with flat ids from `first` compete by `ap` (L, C, U).

        Args:
            kept: (L, C, U) the AP to keep of them.
            describe: responses of each language and AUROC (L, C, U), for what else is kept.
        """
        num_concepts = len(self.concepts)
        totals = None if kept is None else kept.sum(axis=1)

        def details(group: int, units: np.ndarray) -> Mapping[str, np.ndarray]:
            language, concept = divmod(group, num_concepts)
            found: dict[str, np.ndarray] = {}
            if kept is not None and totals is not None:
                own = kept[:, concept, units].T
                found["ap"] = own
                rest = num_concepts - 1
                found["ap_of_others"] = (totals[:, units].T - own) / rest if rest else own
            if describe is not None:
                values, auroc = describe
                found["auroc"] = auroc[language, concept, units]
                found |= self._responses(values[language], language, self.concepts[concept], units)
            return found

        self.top.update(ap.reshape(self.num_groups, -1), first, details)

    def _responses(self, values: Tensor, language: int, concept: str, units: np.ndarray) -> dict[str, np.ndarray]:
        chosen = values[torch.from_numpy(units).to(values.device)].cpu()
        positives = chosen[:, self.pools[language].positives[concept]].numpy()
        negatives = chosen[:, self.pools[language].negatives[concept]].numpy()
        p50, p90 = np.percentile(positives, [50, 90], axis=1)
        return {
            "on_p50": p50.astype(np.float32),
            "on_mean": positives.mean(1),
            "on_p90": p90.astype(np.float32),
            "off_mean": negatives.mean(1),
        }

    def experts(self) -> Experts:
        num_languages, num_concepts = len(self.pools), len(self.concepts)
        shape = (num_languages, num_concepts, self.top.k)
        payload = self.top.payload
        return Experts(
            units=self.top.units.reshape(shape),
            ap=payload["ap"].reshape(*shape, num_languages),
            ap_of_others=payload["ap_of_others"].reshape(*shape, num_languages),
        )
