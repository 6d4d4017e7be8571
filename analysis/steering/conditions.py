"""The conditions of a steering experiment: which units are held at which values, and what they are compared to.

    experts     the top K units of the concept in the source language, at their responses to its positives; where the
                model then writes in that same language, they are the control of the others: a language's own experts
    next        the units on places K + 1 to 2K: as many, nearly as good
    random      as many units of the same sites, drawn at random, at *their* responses to the same positives
    mismatched  the top K units, in the same language, of the concept with the fewest sentences and experts in common
    none        nothing held

Suau et al. (ICML 2022) offer the random and the next units; the mismatched concept separates "any strong push" from
the concept.

Shapes:  M held units of one site   P positives   T tokens of all positives
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.concepts.concept_set import ConceptPool
from analysis.experts.table import ExpertTable, forcing_of
from analysis.extraction.encoding import Batch
from analysis.extraction.options import Extraction
from analysis.extraction.passes import listen
from analysis.extraction.responses import iter_responses
from analysis.extraction.sites import Site
from analysis.snapshots import Snapshot

Control = Literal["none", "random", "next", "mismatched"]
Value = Literal["on_p50", "on_mean", "on_p90", "token_median"]

Units = Mapping[Site, Tensor]
"""Held units of each site, (M,) int64."""
Forced = dict[Site, tuple[Tensor, Tensor]]
"""Held units of each site with their values, (M,) float32."""


def random_units(like: Units, key: Sequence[int]) -> dict[Site, Tensor]:
    """As many units of every site as `like` has, none of them in `like` while the site has enough others.

    `key` seeds the draw.
    """
    chosen = {}
    for index, (site, units) in enumerate(sorted(like.items())):
        rng = np.random.default_rng([*key, index])
        others = np.setdiff1d(np.arange(site.num_units), units.numpy())
        pool = others if len(others) >= len(units) else np.arange(site.num_units)
        chosen[site] = torch.from_numpy(np.sort(rng.choice(pool, size=len(units), replace=False)))
    return chosen


def pooled_values(
    snapshot: Snapshot, units: Units, texts: Sequence[str], statistic: str, extraction: Extraction
) -> Forced:
    """Hold `units` at a statistic (`on_p50`, `on_mean`, `on_p90`) of their pooled responses to `texts`."""
    values = {site: torch.empty(len(chosen)) for site, chosen in units.items()}
    for responses in iter_responses(snapshot, texts, list(units), extraction):
        wanted, first = units[responses.site], responses.first_unit
        here = (wanted >= first) & (wanted < first + len(responses.values))
        chosen = responses.values[(wanted[here] - first).to(responses.values.device)].cpu().numpy()  # (M, P)
        if statistic == "on_mean":
            found = chosen.mean(axis=1)
        else:
            found = np.percentile(chosen, 90 if statistic == "on_p90" else 50, axis=1)
        values[responses.site][here] = torch.from_numpy(found.astype(np.float32))
    return {site: (units[site], values[site]) for site in units}


def token_medians(snapshot: Snapshot, units: Units, texts: Sequence[str], extraction: Extraction) -> Forced:
    """Hold `units` at the median of their activations over all content tokens of `texts`.

    The median of *max-pooled* responses, which the method uses, is higher than what a unit does at a typical token.
    """
    encoded = extraction.encode(snapshot, texts)
    seen: dict[Site, list[Tensor]] = {site: [] for site in units}

    def reader(_: PreTrainedModel, batch: Batch) -> Callable[[Site, Tensor], None]:
        def keep(site: Site, activations: Tensor) -> None:
            chosen = activations[..., units[site].to(activations.device)]
            seen[site].append(chosen[batch.content.to(activations.device)].float().cpu())

        return keep

    listen(snapshot.models, extraction.batches(snapshot, encoded), list(units), reader)
    # numpy: torch.quantile refuses more than 16 million entries
    medians = {site: np.median(torch.cat(parts).numpy(), axis=0) for site, parts in seen.items()}  # of (T, M)
    return {site: (units[site], torch.from_numpy(medians[site])) for site in units}


class Conditions:
    """Makes the forcing of every condition from one expert table.

    Args:
        pools: the labelled sentences of each source language, whose positives set the values of random units.
        band: first and last block (inclusive) whose units are held; None means all.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        table: ExpertTable,
        pools: Mapping[str, ConceptPool],
        *,
        value: Value,
        band: tuple[int, int] | None,
        seed: int,
        extraction: Extraction,
    ) -> None:
        self.snapshot, self.table, self.pools = snapshot, table, pools
        self.value, self.band, self.seed, self.extraction = value, band, seed, extraction

    def forcing(self, condition: str, concept: str, language: str, k: int) -> Forced:
        """Held units of `experts`, `next` or `random`; `mismatched` is `experts` of `other_concept`.

        Raises:
            ValueError: no unit is left, e.g. by the band of layers.
        """
        stored = "on_p50" if self.value == "token_median" else self.value
        first = k if condition == "next" else 0
        forcing = forcing_of(self.table, concept, language, k=k, first=first, value=stored)
        if self.band is not None:
            forcing = {site: entry for site, entry in forcing.items() if self.band[0] <= site.layer <= self.band[1]}
        if not forcing:
            raise ValueError(
                f"no expert of {concept!r} in {language!r} lies in blocks {self.band}; widen the band or raise k"
            )
        if condition != "random" and self.value != "token_median":
            return forcing
        units: Units = {site: held for site, (held, _) in forcing.items()}
        if condition == "random":
            place = self.table.concepts.index(concept), self.table.languages.index(language)
            units = random_units(units, [self.seed, *place, k])
        return self._held_at_own_values(units, concept, language)

    def other_concept(self, concept: str) -> str:
        """The concept that has least to do with this one: fewest common positives, then fewest common experts.

        A neighbour in the list would not do: lists are sorted by meaning (metal, steel), and its units would be a
        weak form of the concept's own.
        """
        place = self.table.concepts.index(concept)
        units = self.table.experts.units  # (languages, concepts, K)

        def likeness(other: str) -> tuple[int, int]:
            positives = (pool.positives for pool in self.pools.values())
            experts = zip(units[:, place], units[:, self.table.concepts.index(other)], strict=True)
            return (
                sum(len(np.intersect1d(one[concept].numpy(), one[other].numpy())) for one in positives),
                sum(len(np.intersect1d(mine, theirs)) for mine, theirs in experts),
            )

        return min((other for other in self.table.concepts if other != concept), key=likeness)

    def _held_at_own_values(self, units: Units, concept: str, language: str) -> Forced:
        pool = self.pools[language]
        texts = [pool.texts[index] for index in pool.positives[concept].tolist()]
        if self.value == "token_median":
            return token_medians(self.snapshot, units, texts, self.extraction)
        return pooled_values(self.snapshot, units, texts, self.value, self.extraction)
