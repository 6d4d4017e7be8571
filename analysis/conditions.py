"""The conditions of a steering experiment: which units are held at which values, and what they are compared to.

    experts     the top K units of the concept in the source language, at their responses to its positives
    next        the units on places K + 1 to 2K: as many, nearly as good
    random      as many units of the same sites, drawn at random, at *their* responses to the same positives
    mismatched  the top K units of another concept in the same language
    none        nothing held

Suau et al. (ICML 2022) offer the random and the next units; the mismatched concept separates "any strong push" from
the concept. Called by `analysis.steering`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from analysis.concepts import ConceptPool
from analysis.encoding import encode_texts, iter_batches, padding_id
from analysis.experts import ExpertTable, forcing_of
from analysis.hooks import read_sites
from analysis.responses import iter_responses
from analysis.sites import Site, body
from analysis.snapshots import Snapshot

CONTROLS = ("none", "random", "next", "mismatched")
VALUES = ("on_p50", "on_mean", "on_p90", "token_median")

Units = Mapping[Site, Tensor]
"""Held units of each site, (M,) int64."""


def held_units(forcing: Mapping[Site, tuple[Tensor, Tensor]]) -> dict[Site, Tensor]:
    return {site: units for site, (units, _) in forcing.items()}


def in_band(forcing: Mapping[Site, tuple[Tensor, Tensor]], band: tuple[int, int] | None) -> dict:
    """Only the units of blocks `band[0]` to `band[1]` (inclusive)."""
    if band is None:
        return dict(forcing)
    return {site: entry for site, entry in forcing.items() if band[0] <= site.layer <= band[1]}


def random_units(like: Units, seed: int) -> dict[Site, Tensor]:
    """As many units of every site as `like` has, none of them in `like` while the site has others."""
    chosen = {}
    for index, (site, units) in enumerate(sorted(like.items())):
        rng = np.random.default_rng([seed, index])
        others = np.setdiff1d(np.arange(site.num_units), units.numpy())
        pool = others if len(others) >= len(units) else np.arange(site.num_units)
        chosen[site] = torch.from_numpy(np.sort(rng.choice(pool, size=len(units), replace=False)))
    return chosen


def pooled_values(
    snapshot: Snapshot, units: Units, texts: Sequence[str], *, pool: str, statistic: str, batch_tokens: int
) -> dict[Site, tuple[Tensor, Tensor]]:
    """Hold `units` at a statistic (`on_p50`, `on_mean`, `on_p90`) of their pooled responses to `texts`."""
    forcing = {}
    for responses in iter_responses(snapshot, texts, list(units), pool=pool, batch_tokens=batch_tokens):
        chosen = responses.values[units[responses.site].to(responses.values.device)].cpu()
        if statistic == "on_mean":
            values = chosen.mean(dim=1)
        else:
            values = torch.quantile(chosen, 0.9 if statistic == "on_p90" else 0.5, dim=1)
        forcing[responses.site] = (units[responses.site], values)
    return forcing


def token_medians(
    snapshot: Snapshot, units: Units, texts: Sequence[str], *, batch_tokens: int, max_length: int = 512
) -> dict[Site, tuple[Tensor, Tensor]]:
    """Hold `units` at the median of their activations over all content tokens of `texts`.

    The median of *max-pooled* responses, which the method uses, is higher than what a unit does at a typical token.
    """
    encoded = encode_texts(snapshot.tokenizer, texts, max_length)
    seen: dict[Site, list[Tensor]] = {site: [] for site in units}
    content: Tensor

    def keep(site: Site, activations: Tensor) -> None:
        chosen = activations[..., units[site].to(activations.device)]
        seen[site].append(chosen[content.to(activations.device)].float().cpu())

    device = next(snapshot.model.parameters()).device
    with torch.no_grad(), read_sites(snapshot.model, list(units), keep):
        for batch in iter_batches(encoded, batch_tokens, padding_id(snapshot.tokenizer)):
            content = batch.content
            body(snapshot.model)(
                input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
            )
    return {site: (units[site], torch.cat(parts).quantile(0.5, dim=0)) for site, parts in seen.items()}


class Conditions:
    """Makes the forcing of every condition from one expert table; each is computed once."""

    def __init__(
        self,
        snapshot: Snapshot,
        table: ExpertTable,
        pools: Mapping[str, ConceptPool],
        *,
        value: str,
        pool: str,
        band: tuple[int, int] | None,
        seed: int,
        batch_tokens: int,
    ) -> None:
        self.snapshot, self.table, self.pools = snapshot, table, pools
        self.value, self.pool, self.band, self.seed, self.batch_tokens = value, pool, band, seed, batch_tokens

    def forcing(self, condition: str, concept: str, language: str, k: int) -> dict[Site, tuple[Tensor, Tensor]]:
        """Raises ValueError if no unit is left, e.g. by the band of layers."""
        if condition == "mismatched":
            concept = self.other_concept(concept)
        stored = "on_p50" if self.value == "token_median" else self.value
        first = k if condition == "next" else 0
        forcing = in_band(forcing_of(self.table, concept, language, k=k, first=first, value=stored), self.band)
        if not forcing:
            raise ValueError(
                f"no expert of {concept!r} in {language!r} lies in blocks {self.band}; widen the band or raise k"
            )
        texts = self._positives(concept, language)
        if condition == "random":
            units = random_units(held_units(forcing), self.seed)
            if self.value != "token_median":
                return pooled_values(
                    self.snapshot,
                    units,
                    texts,
                    pool=self.pool,
                    statistic=self.value,
                    batch_tokens=self.batch_tokens,
                )
            return token_medians(self.snapshot, units, texts, batch_tokens=self.batch_tokens)
        if self.value == "token_median":
            return token_medians(self.snapshot, held_units(forcing), texts, batch_tokens=self.batch_tokens)
        return forcing

    def other_concept(self, concept: str) -> str:
        """The next concept of the table, the first after the last."""
        concepts = self.table.concepts
        return concepts[(concepts.index(concept) + 1) % len(concepts)]

    def _positives(self, concept: str, language: str) -> list[str]:
        pool = self.pools[language]
        return [pool.texts[index] for index in pool.positives[concept].tolist()]
