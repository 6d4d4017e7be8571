"""The life of concept neurons: freeze the experts of one step and follow their AP and rank in every language.

"Specific neurons that emerge as increasingly reliable predictors for the same concepts across languages"
(Riemenschneider and Frank, ACL 2025) is a claim about units, while an overlap of sets is one about numbers. Here the
experts of a chosen step, from the table that `ConceptOverlap` stored, are looked at again at any other step.

Shapes:  L languages   C concepts   K frozen experts of each   U units of one update
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.base import Attachment, Row
from analysis.concepts.concept_set import ConceptSet
from analysis.experts.average_precision import Labels, average_precision, settle_ties
from analysis.experts.table import resolve_k
from analysis.extraction.responses import iter_responses
from analysis.extraction.sites import UnitSpace, find_sites
from analysis.measures.overlap import ConceptOverlap
from analysis.results import ResultTable
from analysis.snapshots import Snapshot
from analysis.statistics import bootstrap_interval

BINS = 10_000
"""Of AP, for ranks among all units: a rank is right to the units of one bin."""


@dataclass(kw_only=True)
class Trajectories(ConceptOverlap):
    """Experts of one step, followed. Same options as the `ConceptOverlap` that found them; measured post hoc.

    Of these, `halves`, `shuffles`, `surface`, `shares` and `sentences` do nothing here: no labelling but the sentences'
    own is ranked.

    Rows (frozen experts of `language`, looked at in `other_language`, also its own; intervals over concepts):

    - `frozen_ap`: their mean AP for their concept at this step. Chance: the mean of all units.
    - `frozen_rank`: their mean rank among all units as a share, 0 the best. Chance 0.5.
    - `frozen_experts`: share of them among the top K of that language at this step. Chance K / N.

    Attachment `units`: concept, language, unit, and `ap_<language>`, `rank_<language>` (share) of every frozen expert;
    `find_births` reads them over all steps.
    """

    default_name: ClassVar[str] = "trajectories"
    version: ClassVar[int] = 1
    needs_null: ClassVar[bool] = False
    headlines: ClassVar[tuple[str, ...]] = ("frozen_experts", "frozen_rank")
    positive: ClassVar[tuple[str, ...]] = (*ConceptOverlap.positive, "frozen_k")
    not_negative: ClassVar[tuple[str, ...]] = (*ConceptOverlap.not_negative, "frozen_step")

    results: str
    """Result folder of the run, with the experts of the frozen step; `{run}` in it stands for the run's name."""
    frozen_step: int
    """Step whose experts are followed."""
    frozen_from: str = "overlap"
    """Name of the analysis that found them."""
    frozen_k: int = 100
    """Best experts of each concept and language that are followed."""

    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        """See the class."""
        concept_set = self.concept_set(snapshot.clones)
        space = UnitSpace(find_sites(snapshot.model, self.site_set))
        units = self._frozen(concept_set, space, snapshot.id.run)
        ap, counts, total = self._follow(snapshot, concept_set, units)
        bins = np.minimum((ap * BINS).astype(int), BINS - 1)  # (L, C, K, L')
        above = space.num_units - counts.cumsum(-1)  # units in higher bins, (L', C, BINS)
        place = np.arange(len(concept_set.concepts))[None, :, None, None]
        target = np.arange(len(concept_set.languages))
        rank = (above[target, place, bins] + (counts[target, place, bins] - 1) / 2) / max(1, space.num_units - 1)
        k = resolve_k(self.k, self.share, space.num_units)
        yield from self._rows(concept_set, ap, rank, total / space.num_units, k / space.num_units)
        yield Attachment("units", self._table(concept_set, units, ap, rank))

    def _labellings(self) -> int:
        return 1

    def _frozen(self, concept_set: ConceptSet, space: UnitSpace, run: str) -> np.ndarray:
        """(L, C, K) flat ids of the experts that are followed.

        Raises:
            FileNotFoundError: there are no experts of that step.
            ValueError: experts of other sites, or none of a concept in a language.
        """
        root = self.results.replace("{run}", run)
        frame = ResultTable(root).attachment(self.frozen_step, self.frozen_from, "experts").to_pandas()
        unit = frame["unit"].to_numpy()
        site = space.site_indices(unit)
        modules = np.array([*(known.module for known in space.sites), ""])  # the last is that of ids beyond all units
        if not ((frame["module"] == modules[site]) & (frame["index"] == unit - space.offsets[site])).all():
            raise ValueError(
                f"{root}: the experts of {self.frozen_from!r} are units of other sites than {self.site_set}; give the "
                "site_set that found them"
            )
        found = []
        for language in concept_set.languages:
            for concept in concept_set.concepts:
                rows = frame[(frame["language"] == language) & (frame["concept"] == concept)].sort_values("rank")
                if rows.empty:
                    raise ValueError(f"{root}: no experts of {concept!r} in {language!r} at step {self.frozen_step}")
                found.append(rows["unit"].to_numpy()[: self.frozen_k])
        return np.stack(found).reshape(len(concept_set.languages), len(concept_set.concepts), -1)

    def _follow(
        self, snapshot: Snapshot, concept_set: ConceptSet, units: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """AP of the frozen units (L, C, K, L'), counts of all units by AP (L', C, BINS), and sums of AP (L', C)."""
        sites = find_sites(snapshot.model, self.site_set)
        offsets = dict(zip(sites, UnitSpace(sites).offsets.tolist(), strict=False))
        pools = [concept_set.pools[language] for language in concept_set.languages]
        labels = [Labels(len(pool.texts), *pool.labels(concept_set.concepts)) for pool in pools]
        texts = [text for pool in pools for text in pool.texts]
        num_languages, num_concepts = units.shape[:2]
        ap = np.zeros((*units.shape, num_languages), dtype=np.float32)
        counts = np.zeros((num_languages, num_concepts, BINS), dtype=np.int64)
        total = np.zeros((num_languages, num_concepts))
        concept_of = np.broadcast_to(np.arange(num_concepts)[None, :, None], units.shape)
        for part in iter_responses(snapshot, texts, sites, self.extraction):
            first = offsets[part.site] + part.first_unit
            here = (units >= first) & (units < first + len(part.values))
            begin = 0
            for place, (pool, labelled) in enumerate(zip(pools, labels, strict=True)):
                values = part.values[:, begin : begin + len(pool.texts)]
                begin += len(pool.texts)
                scores = average_precision(settle_ties(values), labelled).cpu().numpy()  # (C, U)
                ap[here, place] = scores[concept_of[here], units[here] - first]
                total[place] += scores.sum(1)
                for concept, row in enumerate(np.minimum((scores * BINS).astype(int), BINS - 1)):
                    counts[place, concept] += np.bincount(row, minlength=BINS)
        return ap, counts, total

    def _rows(
        self, concept_set: ConceptSet, ap: np.ndarray, rank: np.ndarray, mean_ap: np.ndarray, share: float
    ) -> Iterator[Row]:
        for one, source in enumerate(concept_set.languages):
            for other, target in enumerate(concept_set.languages):
                for metric, values, chance in (
                    ("frozen_ap", ap[one, :, :, other], float(mean_ap[other].mean())),
                    ("frozen_rank", rank[one, :, :, other], 0.5),
                    ("frozen_experts", rank[one, :, :, other] < share, share),
                ):
                    by_concept = values.mean(1)
                    low, high = bootstrap_interval(
                        by_concept, clusters=concept_set.clusters, num_resamples=self.bootstrap, seed=self.seed
                    )
                    yield Row(
                        metric=metric,
                        value=float(by_concept.mean()),
                        language=source,
                        other_language=target,
                        chance=chance,
                        low=float(low),
                        high=float(high),
                    )

    @staticmethod
    def _table(concept_set: ConceptSet, units: np.ndarray, ap: np.ndarray, rank: np.ndarray) -> pa.Table:
        num_languages, num_concepts, k = units.shape
        columns: dict[str, object] = {
            "concept": np.tile(np.repeat(concept_set.concepts, k), num_languages),
            "language": np.repeat(concept_set.languages, num_concepts * k),
            "unit": units.reshape(-1),
        }
        for place, language in enumerate(concept_set.languages):
            columns[f"ap_{language}"] = ap[..., place].reshape(-1)
            columns[f"rank_{language}"] = rank[..., place].reshape(-1)
        return pa.table(columns)


def find_births(results: ResultTable, share: float, analysis: str = "trajectories") -> pd.DataFrame:
    """When every frozen expert became one, in every language: concept, language, unit, other_language, birth.

    `birth` is the first step from which on the unit is among the best `share` of units in `other_language` at every
    later measured step; missing where it is not, or was not followed, at the last one. Sorted by birth within a unit,
    it is the order in which languages join.
    """
    steps = [step for step, name in results.entries() if name == analysis]
    keys = ["concept", "language", "unit"]
    inside: dict[int, pd.DataFrame] = {}
    for step in steps:
        frame = results.attachment(step, analysis, "units").to_pandas().set_index(keys)
        ranks = frame[[name for name in frame.columns if name.startswith("rank_")]]
        inside[step] = (ranks.rename(columns=lambda name: name.removeprefix("rank_")) < share).stack()
    table = pd.DataFrame(inside).rename_axis(index=[*keys, "other_language"])[steps]
    lasting = table[steps[::-1]].eq(True).cummin(axis=1)[steps]
    birth = lasting.idxmax(axis=1).where(lasting.any(axis=1))
    return birth.rename("birth").reset_index().sort_values([*keys, "birth"], ignore_index=True)
