"""Do translations have the same representation? Similarity of languages on parallel text, layer by layer.

Five measures (`analysis.geometry.similarity`), each with its chance level, a permutation p value and a calibrated score
(`analysis.geometry.calibration`); the same permutations serve all layers and pairs, so means over pairs and over layers
are calibrated by the same means of their nulls.

Shapes:  Y layers   L languages   Q pairs of languages   n sentences   K permutations
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from analysis.base import Row
from analysis.cost import PERMUTED, Shape
from analysis.extraction.sites import Site, find_sites
from analysis.extraction.states import SENTENCE_POOLINGS, iter_sentence_states, unit_hash
from analysis.geometry.calibration import calibrate, draw_permutations, draw_signs, influence_interval
from analysis.geometry.similarity import SHARES, SYMMETRIC, Similarity, compare_languages
from analysis.measures.text_analysis import StateAnalysis, shown_layers
from analysis.snapshots import Snapshot
from analysis.texts import Text

logger = logging.getLogger(__name__)


def choose_parallel(texts: Mapping[str, Sequence[Text]], count: int, seed: int = 0) -> dict[str, list[str]]:
    """Up to `count` sentences that all languages have, chosen by their keys; entry i is the same sentence everywhere.

    Raises:
        ValueError: fewer than two languages, or no key that all of them have.
    """
    if len(texts) < 2:
        raise ValueError(f"parallel text needs two languages or more, got {', '.join(texts) or 'none'}")
    keyed = {language: {entry.key: entry.text for entry in entries} for language, entries in texts.items()}
    common = set.intersection(*(set(entries) for entries in keyed.values()))
    if not common:
        raise ValueError(f"no text is there in all of {', '.join(texts)}: translations must carry the same key (uid)")
    chosen = sorted(common, key=lambda key: (unit_hash(seed, key), key))[:count]
    return {language: [entries[key] for key in chosen] for language, entries in keyed.items()}


@dataclass(kw_only=True)
class Alignment(StateAnalysis):
    """Similarity of every pair of languages at every layer.

    Rows, for each measure m: per layer (mean over pairs), per pair and overall (aggregated over layers) `m` with
    chance, p and a 95 % interval over sentences, and `m_calibrated` (0 = nothing beyond chance).

    Raises (when measuring):
        FileNotFoundError, ValueError: see `read_texts`, `choose_parallel` and `compare_languages`.
    """

    num_texts: int = 100
    """Sentences at most; all languages must have them."""
    measures: list[str] = field(default_factory=lambda: list(SYMMETRIC))
    """Of cka_debiased, mutual_knn, mexa, abx_meaning, abx_language."""
    pool: str = "mean"
    """From tokens to a sentence vector: mean, weighted (later tokens count more, as MEXA) or last."""
    centre: bool = False
    """Remove each language's mean vector first: what is then compared is free of the language's own offset."""
    neighbours: int = 10
    """k of mutual k-NN."""
    permutations: int = 200
    """Permutations for chance and p; the smallest p is 1 / (permutations + 1)."""
    alpha: float = 0.05
    """Level of the threshold that a calibrated score starts from."""
    aggregate: str = "mean"
    """Over layers: mean, or max (the best layer, calibrated by the best layers of the nulls)."""
    layers: list[int] = field(default_factory=list)
    """Layers to measure, -1 for embeddings; empty means all."""
    seed: int = 0
    """Chooses the sentences and draws the permutations."""

    default_name: ClassVar[str] = "alignment"
    headlines: ClassVar[tuple[str, ...]] = ("mutual_knn", "cka_debiased")
    version: ClassVar[int] = 2
    positive: ClassVar[tuple[str, ...]] = ("num_texts", "neighbours", "permutations")

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, allowed in (("pool", SENTENCE_POOLINGS), ("aggregate", ("mean", "max"))):
            if getattr(self, option) not in allowed:
                raise ValueError(f"{self.name}: {option}={getattr(self, option)!r}: choose from {', '.join(allowed)}")
        unknown = [measure for measure in self.measures if measure not in SYMMETRIC]
        if unknown or not self.measures:
            raise ValueError(f"{self.name}: unknown measure {unknown or '(none)'}: choose from {', '.join(SYMMETRIC)}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"{self.name}: alpha={self.alpha} must lie between 0 and 1")
        if self.num_texts < max(4, self.neighbours + 2):
            raise ValueError(
                f"{self.name}: num_texts={self.num_texts} must be at least {max(4, self.neighbours + 2)} "
                f"for neighbours={self.neighbours}"
            )

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        chosen: dict[str, list[str]] = self._kept.get(
            self._depends_on(snapshot), lambda: choose_parallel(self.read(snapshot), self.num_texts, self.seed)
        )
        languages = sorted(chosen)
        pairs = list(combinations(range(len(languages)), 2))
        num_texts = len(chosen[languages[0]])
        if num_texts < self.num_texts:
            logger.info("%s: %d parallel sentences (%d wanted)", self.name, num_texts, self.num_texts)
        permutations = draw_permutations(num_texts, self.permutations, self.seed)
        signs = draw_signs(num_texts, self.permutations, self.seed)
        sites = self._sites(snapshot)
        flat = [text for language in languages for text in chosen[language]]
        by_layer: list[dict[str, Similarity]] = []
        for _, vectors in iter_sentence_states(snapshot, flat, sites, self.extraction):
            states = vectors.view(len(languages), num_texts, -1)
            if self.centre:
                states = states - states.mean(dim=1, keepdim=True)
            by_layer.append(
                compare_languages(
                    states, pairs, permutations, signs, neighbours=self.neighbours, measures=self.measures
                )
            )
        named = [(languages[i], languages[j]) for i, j in pairs]
        for measure in by_layer[0]:
            found = [layer[measure] for layer in by_layer]
            yield from self._rows(measure, found, [site.layer for site in sites], named)

    def work(self, shape: Shape) -> float:
        languages, tokens = self.num_tokens(shape, self.num_texts)
        pairs, layers = languages * (languages - 1) / 2, len(self.layers) or shape.layers + 1
        return tokens * shape.read + layers * pairs * self.num_texts**2 * self.permutations * PERMUTED

    def _sites(self, snapshot: Snapshot) -> Sequence[Site]:
        sites = find_sites(snapshot.model, "hidden")
        chosen = shown_layers(self.layers or [site.layer for site in sites], sites)
        return [site for site in sites if site.layer in chosen]

    def _rows(
        self, measure: str, found: Sequence[Similarity], layers: Sequence[int], pairs: Sequence[tuple[str, str]]
    ) -> Iterator[Row]:
        """Rows of one measure: every layer (mean over pairs), every pair (over layers), and all together."""
        raw = _over_layers(one.observed for one in found)  # (Y, Q)
        observed = _with_margins(raw, self.aggregate)  # (Y + 1, Q + 1)
        null = _with_margins(_over_layers(one.null for one in found).movedim(0, 1), self.aggregate)  # (K, Y + 1, Q + 1)
        calibrated = calibrate(observed, null, alpha=self.alpha)
        chance = _with_margins(_over_layers(one.chance for one in found), "mean")
        if self.aggregate == "max":
            chance[-1] = null[:, -1].mean(dim=0)  # the best of several layers is above chance by itself
        influence = self._influence(_over_layers(one.influence for one in found).movedim(2, 0), raw)
        cells: list[tuple[int | None, tuple[str | None, str | None], tuple[int, int]]] = []
        cells += [(layer, (None, None), (place, -1)) for place, layer in enumerate(layers)]
        cells += [(None, pair, (-1, place)) for place, pair in enumerate(pairs)]
        for layer, (language, other), cell in [*cells, (None, (None, None), (-1, -1))]:
            value = float(observed[cell])
            low, high = influence_interval(value, influence[:, cell[0], cell[1]].double().numpy(), measure in SHARES)
            row = Row(
                metric=measure,
                value=value,
                layer=layer,
                language=language,
                other_language=other,
                chance=float(chance[cell]),
                low=low,
                high=high,
                p=float(calibrated.p[cell]),
            )
            yield row
            score = float(calibrated.score[cell])
            yield replace(row, metric=f"{measure}_calibrated", value=score, chance=0.0, low=None, high=None)

    def _influence(self, influence: Tensor, raw: Tensor) -> Tensor:
        """Influence (m, Y, Q) of the sentences, with margins (m, Y + 1, Q + 1) like those of the values (Y, Q)."""
        if self.aggregate == "mean":
            return _with_margins(influence, "mean")
        best = raw.argmax(dim=0)  # (Q,)
        over_layers = influence[:, best, torch.arange(raw.shape[1])]
        of_mean = influence.mean(dim=2)[:, int(raw.mean(dim=1).argmax())]
        wide = torch.cat([influence, over_layers[:, None]], dim=1)  # (m, Y + 1, Q)
        margin = torch.cat([influence.mean(dim=2), of_mean[:, None]], dim=1)  # (m, Y + 1)
        return torch.cat([wide, margin[:, :, None]], dim=2)


def _over_layers(parts: Iterable[Tensor]) -> Tensor:
    """(Y, ...) on the host: the layers of one checkpoint may lie on several devices."""
    return torch.stack([part.cpu() for part in parts])


def _with_margins(values: Tensor, aggregate: str) -> Tensor:
    """(..., Y, Q) to (..., Y + 1, Q + 1): the mean over pairs beside, the aggregate over layers below."""
    wide = torch.cat([values, values.mean(dim=-1, keepdim=True)], dim=-1)
    over_layers = wide.amax(dim=-2, keepdim=True) if aggregate == "max" else wide.mean(dim=-2, keepdim=True)
    return torch.cat([wide, over_layers], dim=-2)
