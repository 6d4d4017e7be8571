"""Expert units: for every concept and language the units whose responses detect it best, over all layers together.

One pass over the sites finds them for all languages at once (the top units by AP, as Suau et al., ICML 2022). While the
responses of a site are at hand, a running top-K keeps of each candidate what later measures need: its AP in *every*
language, its AP for the other concepts, and the forcing values. So overlap, transfer, nulls and steering need no second
pass, and memory does not depend on the size of the model. Units rank by AP, then by flat id. Called by
`analysis.overlap` and by steering.

Shapes:  U units of one site (or of a part of it)   N texts   C concepts   L languages   K experts   G = L x C groups
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from analysis.concepts import ConceptSet
from analysis.correlation import RankCorrelation
from analysis.expertise import Labels, measure_expertise, score
from analysis.responses import iter_responses
from analysis.sites import Site, UnitSpace, find_sites, unit_kinds
from analysis.snapshots import Snapshot
from analysis.topk import TopUnits


@dataclass(frozen=True)
class Experts:
    """The top units of every (language, concept) by one labelling of the sentences."""

    units: np.ndarray
    """(L, C, K) int64 flat ids, best first."""
    ap: np.ndarray
    """(L, C, K, L) float32: AP of each expert for its concept in every language."""
    ap_of_others: np.ndarray
    """(L, C, K, L) float32: its mean AP for the other concepts in every language (its own AP if there are none)."""


@dataclass(frozen=True)
class ExpertTable:
    """What `find_experts` finds; languages and concepts in the order of the concept set."""

    space: UnitSpace
    languages: tuple[str, ...]
    concepts: tuple[str, ...]
    experts: Experts
    prevalence: np.ndarray
    """(L, C) AP of a unit that knows nothing."""
    auroc: np.ndarray
    """(L, C, K) float32."""
    on_p50: np.ndarray
    """(L, C, K) float32: median response to the positives, the forcing value of Suau et al."""
    on_mean: np.ndarray
    on_p90: np.ndarray
    off_mean: np.ndarray
    """(L, C, K) float32: mean response to the negatives."""
    unit_kind: np.ndarray
    """(A,) kind of every unit, a fused query-key-value output told apart."""
    halves: tuple[Experts, Experts] | None
    """Experts by the sentences of each half, with AP measured on the *other* half."""
    shuffled: tuple[np.ndarray, ...]
    """(L, C, K) flat ids by shuffled labels, one for each shuffle."""
    ap_correlation: np.ndarray | None
    """(L, C, L, C) Spearman correlation of AP over units, within sites."""

    @property
    def k(self) -> int:
        return self.experts.units.shape[2]

    def to_arrow(self) -> pa.Table:
        """One row per expert: concept, language, rank, unit, layer, kind, module, index, ap, auroc, ap_<language> ...,
        on_p50, on_mean, on_p90, off_mean."""
        num_languages, num_concepts, k = self.experts.units.shape
        flat = self.experts.units.reshape(-1)
        site = self.space.site_indices(flat)
        size = num_languages * num_concepts
        own = self.experts.ap[np.arange(num_languages), :, :, np.arange(num_languages)]
        columns: dict[str, object] = {
            "concept": np.tile(np.repeat(self.concepts, k), num_languages),
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
    pool: str = "max",
    halves: bool = False,
    shuffles: int = 0,
    correlate: bool = False,
    seed: int = 0,
    batch_tokens: int = 2048,
    max_bytes: int = 2**31,
    max_length: int = 512,
    storage: str = "float32",
) -> ExpertTable:
    """Find the `k` best units of every concept in every language.

    Args:
        k, share: number of experts per concept and language, or share of all units (takes precedence).
        halves: also by each half of the sentences (`analysis.concepts.half_of`), with held-out AP.
        shuffles: also by labels shuffled among a concept's sentences, this many times. A sentence and its translations
            keep one label, so what survives is not the concept.
        correlate: also correlate the AP of all units between languages and concepts.
        seed: of the shuffles.
        pool, batch_tokens, max_bytes, max_length, storage: see `analysis.responses.iter_responses`.

    Raises:
        ValueError: more experts asked for than units; and what `iter_responses` and `find_sites` raise.
    """
    sites = find_sites(snapshot.model, site_set)
    space = UnitSpace(sites)
    count = resolve_k(k, share, space.num_units)
    pools = [concept_set.pools[language] for language in concept_set.languages]
    texts = [text for entry in pools for text in entry.texts]
    ends = np.cumsum([len(entry.texts) for entry in pools]).tolist()
    parts = [slice(end - len(entry.texts), end) for entry, end in zip(pools, ends, strict=True)]

    main = _Search(concept_set, count, describe=True)
    half_searches = [_Search(concept_set.half(which), count) for which in (0, 1)] if halves else []
    shuffle_searches = [_Search(shuffle_labels(concept_set, seed + number), count) for number in range(shuffles)]
    correlation = RankCorrelation(main.num_groups) if correlate else None
    offsets = dict(zip(sites, space.offsets[:-1].tolist(), strict=True))
    stream = iter_responses(
        snapshot,
        texts,
        sites,
        pool=pool,
        batch_tokens=batch_tokens,
        max_bytes=max_bytes,
        max_length=max_length,
        storage=storage,
        split_sites=True,
    )
    for responses in stream:
        values = [responses.values[:, part] for part in parts]
        first = offsets[responses.site] + responses.first_unit
        ap = main.score(values)
        main.update(ap, ap, values, first)
        if correlation is not None:
            correlation.update(ap)
        if half_searches:
            scores = [search.score(values) for search in half_searches]
            for search, own, held_out in zip(half_searches, scores, scores[::-1], strict=True):
                search.update(own, held_out, values, first)
        for search in shuffle_searches:
            search.update(search.score(values), None, values, first)

    shape = (len(pools), len(concept_set.concepts))
    details = main.top.payload
    return ExpertTable(
        space=space,
        languages=concept_set.languages,
        concepts=concept_set.concepts,
        experts=main.experts(),
        prevalence=np.array([[entry.prevalence(name) for name in concept_set.concepts] for entry in pools]),
        auroc=details["auroc"].reshape(*shape, count),
        on_p50=details["on_p50"].reshape(*shape, count),
        on_mean=details["on_mean"].reshape(*shape, count),
        on_p90=details["on_p90"].reshape(*shape, count),
        off_mean=details["off_mean"].reshape(*shape, count),
        unit_kind=np.concatenate([unit_kinds(snapshot.model, site) for site in sites]),
        halves=(half_searches[0].experts(), half_searches[1].experts()) if halves else None,
        shuffled=tuple(search.top.units.reshape(*shape, count) for search in shuffle_searches),
        ap_correlation=None if correlation is None else correlation.result().reshape(*shape, *shape),
    )


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


class _Search:
    """The running top-K of one labelling of the sentences."""

    def __init__(self, concept_set: ConceptSet, k: int, describe: bool = False) -> None:
        self.pools = [concept_set.pools[language] for language in concept_set.languages]
        self.concepts = concept_set.concepts
        self.labels = [Labels(len(pool.texts), *pool.labels(self.concepts)) for pool in self.pools]
        self.num_groups = len(self.pools) * len(self.concepts)
        self.describe = describe
        self.auroc = np.empty(0)
        self.top = TopUnits(self.num_groups, k)

    def score(self, values: Sequence[Tensor]) -> np.ndarray:
        """AP (L, C, U) from the responses of each language's texts."""
        if not self.describe:
            scores = [score(part, labels) for part, labels in zip(values, self.labels, strict=True)]
            return np.stack([ap.cpu().numpy() for ap in scores])
        both = [measure_expertise(part, labels) for part, labels in zip(values, self.labels, strict=True)]
        self.auroc = np.stack([expertise.auroc.cpu().numpy() for expertise in both])
        return np.stack([expertise.ap.cpu().numpy() for expertise in both])

    def update(self, ap: np.ndarray, kept: np.ndarray | None, values: Sequence[Tensor], first: int) -> None:
        """Let the units with flat ids from `first` compete by `ap`; `kept` (L, C, U) is the AP to keep of them."""
        num_concepts = len(self.concepts)
        totals = None if kept is None else kept.sum(axis=1)

        def describe(group: int, units: np.ndarray) -> Mapping[str, np.ndarray]:
            language, concept = divmod(group, num_concepts)
            found: dict[str, np.ndarray] = {}
            if kept is not None and totals is not None:
                own = kept[:, concept, units].T
                found["ap"] = own
                rest = num_concepts - 1
                found["ap_of_others"] = (totals[:, units].T - own) / rest if rest else own
            if self.describe:
                found["auroc"] = self.auroc[language, concept, units]
                found |= self._describe(values[language], language, self.concepts[concept], units)
            return found

        self.top.update(ap.reshape(self.num_groups, -1), first, describe)

    def _describe(self, values: Tensor, language: int, concept: str, units: np.ndarray) -> dict[str, np.ndarray]:
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


def forcing_of(
    table: ExpertTable, concept: str, language: str, *, k: int | None = None, first: int = 0, value: str = "on_p50"
) -> dict[Site, tuple[Tensor, Tensor]]:
    """The forcing of `analysis.hooks.force_units` for experts `first` to `first + k` of a concept in a language.

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
