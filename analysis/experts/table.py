"""Expert units: for every concept and language the units whose responses detect it best, over all layers together.

One pass over the sites finds them for all languages at once (the top units by AP, as Suau et al., ICML 2022). While the
responses of a site are at hand, a running top-K keeps of each candidate what later measures need: its AP in *every*
language, its AP for the other concepts, and the forcing values. So overlap, transfer, nulls and steering need no second
pass, and memory does not depend on the size of the model. Units rank by AP, then by flat id; responses that differ only
by rounding are ties (`analysis.experts.average_precision.settle_ties`).

Shapes:  U units of one site (or of a part of it)   N texts   C concepts   L languages   K experts   G = L x C groups
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from analysis.concepts.concept_set import ConceptSet
from analysis.experts.search import Found, top_units
from analysis.extraction.options import DEFAULTS, Extraction
from analysis.extraction.responses import iter_responses
from analysis.extraction.sites import Site, UnitSpace, find_sites, unit_kinds
from analysis.snapshots import Snapshot


@dataclass(frozen=True)
class ExpertTable(Found):
    """What `find_experts` finds, and what it is about."""

    space: UnitSpace
    languages: tuple[str, ...]
    concepts: tuple[str, ...]
    prevalence: np.ndarray
    """(L, C) AP of a unit that knows nothing."""
    unit_kind: np.ndarray
    """(A,) kind of every unit, a fused query-key-value output told apart."""
    clusters: np.ndarray
    """(C,) concepts of one cluster depend on each other."""

    @property
    def k(self) -> int:
        return int(self.experts.units.shape[2])

    def to_arrow(self) -> pa.Table:
        """One row per expert: concept, cluster, language, rank, unit, layer, kind, module, index, ap, auroc,
        ap_<language> ..., on_p50, on_mean, on_p90, off_mean."""
        num_languages, num_concepts, k = self.experts.units.shape
        flat = self.experts.units.reshape(-1)
        site = self.space.site_indices(flat)
        size = num_languages * num_concepts
        own = self.experts.ap[np.arange(num_languages), :, :, np.arange(num_languages)]
        columns: dict[str, object] = {
            "concept": np.tile(np.repeat(self.concepts, k), num_languages),
            "cluster": np.tile(np.repeat(self.clusters.astype(np.int32), k), num_languages),
            "language": np.repeat(self.languages, num_concepts * k),
            "rank": np.tile(np.arange(k, dtype=np.int32), size),
            "unit": flat,
            "layer": np.array([entry.layer for entry in self.space.sites], dtype=np.int32)[site],
            "kind": self.unit_kind[flat],
            "module": np.array([entry.module for entry in self.space.sites])[site],
            "index": flat - self.space.offsets[site],
            "ap": own.reshape(-1),
            "auroc": self.auroc.reshape(-1),
        }
        for place, language in enumerate(self.languages):
            columns[f"ap_{language}"] = self.experts.ap[..., place].reshape(-1)
        for name in ("on_p50", "on_mean", "on_p90", "off_mean"):
            columns[name] = getattr(self, name).reshape(-1)
        return pa.table(columns)


def resolve_k(k: int, share: float | None, num_units: int) -> int:
    """Number of experts: `k`, or `share` of all units where it is given (rounded, at least 1).

    Raises:
        ValueError: neither gives a number between 1 and `num_units`.
    """
    if share is not None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share={share}: must be above 0 and at most 1")
        return max(1, round(share * num_units))
    if k < 1:
        raise ValueError(f"k={k}: at least one expert per concept is needed")
    if k > num_units:
        raise ValueError(
            f"k={k} experts, but the model has only {num_units} units in these sites: lower k or use share"
        )
    return k


def find_experts(
    snapshot: Snapshot,
    concept_set: ConceptSet,
    *,
    site_set: str | Sequence[str] = "linear",
    k: int = 500,
    share: float | None = None,
    halves: bool = False,
    deepest: int = 0,
    shuffles: int = 0,
    seed: int = 0,
    extraction: Extraction = DEFAULTS,
    listener: Callable[[Sequence[Tensor]], None] | None = None,
) -> ExpertTable:
    """Find the `k` best units of every concept in every language.

    Args:
        k, share: number of experts per concept and language, or share of all units (takes precedence).
        halves: also by each half of the sentences (`ConceptSet.half`): held-out AP, rank correlation.
        deepest: with halves, the ids of this many units of each half are kept.
        shuffles: also by labels shuffled among a concept's sentences, this many times. A sentence and its translations
            keep one label, so what survives is not the concept.
        seed: of the shuffles.
        listener: called with the responses (U, N) of consecutive units to the texts of each language, as they pass by.

    Raises:
        ValueError: more experts asked for than units; and what `iter_responses` and `find_sites` raise.
    """
    sites = find_sites(snapshot.model, site_set)
    space = UnitSpace(sites)
    count = resolve_k(k, share, space.num_units)
    pools = [concept_set.pools[language] for language in concept_set.languages]
    sizes = [len(pool.texts) for pool in pools]
    offsets = dict(zip(sites, space.offsets[:-1].tolist(), strict=True))
    texts = [text for pool in pools for text in pool.texts]

    def stream() -> Iterator[tuple[int, bool, Sequence[Tensor]]]:
        for responses in iter_responses(snapshot, texts, sites, extraction):
            values = torch.split(responses.values, sizes, dim=1)
            if listener is not None:
                listener(values)
            complete = responses.first_unit + len(responses.values) == responses.site.num_units
            yield offsets[responses.site] + responses.first_unit, complete, values

    found = top_units(stream(), concept_set, count, deepest=deepest, halves=halves, shuffles=shuffles, seed=seed)
    return ExpertTable(
        **vars(found),
        space=space,
        languages=concept_set.languages,
        concepts=concept_set.concepts,
        prevalence=np.array([[pool.prevalence(name) for name in concept_set.concepts] for pool in pools]),
        unit_kind=np.concatenate([unit_kinds(snapshot.model, site) for site in sites]),
        clusters=concept_set.clusters,
    )


def forcing_of(
    table: ExpertTable, concept: str, language: str, *, k: int | None = None, first: int = 0, value: str = "on_p50"
) -> dict[Site, tuple[Tensor, Tensor]]:
    """The forcing of `analysis.extraction.hooks.force_units` for experts `first` to `first + k` of a concept in a
    language.

    Args:
        value: `on_p50`, `on_mean` or `on_p90`.

    Raises:
        ValueError: an unknown concept, language or value; or fewer experts in the table than asked for.
    """
    for name, asked, known in (
        ("concept", concept, table.concepts),
        ("language", language, table.languages),
        ("forcing value", value, ("on_p50", "on_mean", "on_p90")),
    ):
        if asked not in known:
            raise ValueError(f"no {name} {asked!r}; there are {', '.join(known)}")
    last = table.k if k is None else first + k
    if first < 0 or not first < last <= table.k:
        raise ValueError(f"experts {first} to {last} of {concept!r} in {language!r}: the table holds {table.k}")
    place = table.languages.index(language), table.concepts.index(concept), slice(first, last)
    flat, values = table.experts.units[place], getattr(table, value)[place]
    sites = table.space.site_indices(flat)
    forcing = {}
    for index in np.unique(sites):
        chosen = sites == index
        units = torch.from_numpy(flat[chosen] - table.space.offsets[index])
        forcing[table.space.sites[index]] = units, torch.from_numpy(values[chosen].copy())
    return forcing
