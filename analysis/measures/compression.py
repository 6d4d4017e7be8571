"""Is the model compressing, and by sharing? The geometry of token states, layer by layer.

If a network saves capacity by using the same directions for several languages, the states of different languages vary
in the same directions (`analysis.geometry.sharing`), more than in the untrained network. The intrinsic dimension says
how many directions there are at all.

Shapes:  L languages   Y layers   D hidden size   B buckets of sentences   R = 1 + B leavings-out (first: none)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
import torch
from scipy.stats import t
from torch import Tensor

from analysis.base import Row
from analysis.cost import Shape
from analysis.extraction.sites import find_sites
from analysis.extraction.states import TokenSample, iter_token_states, unit_hash
from analysis.geometry.dimensions import squared_distances, two_nn
from analysis.geometry.sharing import share_covariance
from analysis.measures.text_analysis import StateAnalysis
from analysis.snapshots import Snapshot

logger = logging.getLogger(__name__)

POOLED_POINTS = 1000
"""Tokens of all languages together from which their intrinsic dimension is estimated, about."""


@dataclass(kw_only=True)
class Compression(StateAnalysis):
    """How far languages use the same directions, and how many there are.

    Rows with an interval from a jackknife over buckets of sentences (Student's t): `sharing` (chance 0 = unrelated
    directions, 1 = equal covariances; the same scale at every width) per layer, as the mean over layers, and per pair
    as the mean over layers; `intrinsic_dimension` of all languages together per layer and as the mean over layers.
    Clones are left out of all rows but those of pairs, unless there would be no other pair.
    Where no direction stands out that could be shared, or states have collapsed, there is no row, nor one of the mean
    over layers.

    Raises (when measuring):
        FileNotFoundError, ValueError: see `read_texts` and `sample_tokens`; or too few tokens of a language.
    """

    tokens_per_language: int = 400
    """Tokens of each language."""
    tokens_per_text: int = 8
    """Tokens drawn from one text at most."""
    buckets: int = 20
    """Buckets of sentences for the jackknife, even; their halves are what a language is compared with itself by."""
    seed: int = 0
    """Chooses the tokens and the buckets."""

    default_name: ClassVar[str] = "compression"
    headlines: ClassVar[tuple[str, ...]] = ("sharing",)
    version: ClassVar[int] = 4
    positive: ClassVar[tuple[str, ...]] = ("tokens_per_language", "tokens_per_text")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buckets < 4 or self.buckets % 2:
            raise ValueError(f"{self.name}: buckets={self.buckets} must be even and at least 4")

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        sample = self.sample(snapshot, self.tokens_per_language, self.tokens_per_text, self.seed)
        sites = find_sites(snapshot.model, "hidden")
        bucket = self._buckets(sample)
        for number, name in enumerate(sample.languages):
            halves = np.bincount(bucket[sample.language == number] % 2, minlength=2)
            if halves.min() < 4:
                raise ValueError(
                    f"{self.name}: {name!r} has only {halves.min()} tokens in one half of its sentences, 4 are needed; "
                    "give more texts"
                )
            if halves.sum() < self.tokens_per_language:
                logger.info("%s: %d tokens of %s (%d wanted)", self.name, halves.sum(), name, self.tokens_per_language)
        language = torch.from_numpy(sample.language)
        natural = np.array([name not in snapshot.clones for name in sample.languages])
        counted = natural if natural.sum() > 1 else np.ones_like(natural)
        taken, beginning = self._pooled(sample, counted)
        overall, pairs, dimensions = [], [], []
        for _, values in iter_token_states(snapshot, sample, sites, self.extraction):
            device = values.device
            shared = share_covariance(
                values,
                language.to(device),
                torch.from_numpy(bucket).to(device),
                self.buckets,
                torch.from_numpy(counted),
            )
            overall.append(shared.overall.cpu().numpy())
            pairs.append(shared.pairs.cpu().numpy())
            squared = squared_distances(values[taken.to(device)], beginning.to(device))
            dimensions.append(np.array(two_nn(squared, torch.from_numpy(bucket)[taken].to(device), self.buckets)))
        layers = [site.layer for site in sites]
        yield from _rows("sharing", np.stack(overall), layers, 0.0)
        for i, j in combinations(range(len(sample.languages)), 2):
            one, other = sample.languages[i], sample.languages[j]
            values = np.stack(pairs)[:, :, i, j].mean(axis=0)
            yield from _row("sharing", values, 0.0, language=one, other_language=other)
        yield from _rows("intrinsic_dimension", np.stack(dimensions), layers, None)

    def work(self, shape: Shape) -> float:
        texts = -(-self.tokens_per_language // self.tokens_per_text)
        languages, tokens = self.num_tokens(shape, texts)
        states = self.tokens_per_language * languages
        products = states**2 / 2 + 4 * min(states, POOLED_POINTS) ** 2
        return tokens * shape.read + (shape.layers + 1) * shape.width * products

    def _buckets(self, sample: TokenSample) -> np.ndarray:
        """(N,) buckets of equally many sentences, a function of seed and key."""
        rank = np.argsort(np.argsort([unit_hash("bucket", self.seed, key) for key in sample.key_names]))
        chosen: np.ndarray = (rank % self.buckets)[sample.key]
        return chosen

    @staticmethod
    def _pooled(sample: TokenSample, counted: np.ndarray) -> tuple[Tensor, Tensor]:
        """Every s-th token of the `counted` (L,) languages together, since the cost grows with the square, and the
        number of what its text begins with: texts that begin alike have the same states there, but for rounding, which
        is no distance.
        """
        candidates = np.flatnonzero(counted[sample.language])
        taken = candidates[:: max(1, len(candidates) // POOLED_POINTS)]
        numbers: dict[tuple[int, ...], int] = {}
        beginnings = [tuple(sample.encoded.ids[sample.text[one]][: sample.position[one] + 1]) for one in taken]
        return torch.from_numpy(taken), torch.tensor([numbers.setdefault(ids, len(numbers)) for ids in beginnings])


def _rows(metric: str, values: np.ndarray, layers: Sequence[int], chance: float | None) -> Iterator[Row]:
    """Every layer and their mean, from values (Y, R)."""
    for layer, value in zip([*layers, None], [*values, values.mean(axis=0)], strict=True):
        yield from _row(metric, value, chance, layer=layer)


def _row(
    metric: str,
    values: np.ndarray,
    chance: float | None,
    *,
    layer: int | None = None,
    language: str | None = None,
    other_language: str | None = None,
) -> Iterator[Row]:
    """A value with its jackknife interval, from values (R,); none if one of them is not a number."""
    if np.isfinite(values).all():
        value, without = float(values[0]), values[1:]
        size = len(without)
        error = float(np.sqrt((size - 1) / size * ((without - without.mean()) ** 2).sum()))
        half = float(t.ppf(0.975, size - 1)) * error
        yield Row(
            metric=metric,
            value=value,
            layer=layer,
            language=language,
            other_language=other_language,
            chance=chance,
            low=value - half,
            high=value + half,
        )
