"""Is the model compressing, and by sharing? The geometry of token states, per layer and language.

If a network saves capacity by using the same directions for several languages, the description of all languages
together grows shorter than the sum of their descriptions (`sharing`), and their leading subspaces overlap more than
unrelated ones. Effective rank, participation ratio and intrinsic dimension say how many directions there are at all.
Measures and sources in `analysis.geometry.dimensions`.

Shapes:  L languages   n tokens of one language   D hidden size   Q pairs of languages
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from analysis.base import Row
from analysis.extraction.sites import find_sites
from analysis.extraction.states import TokenSample, iter_token_states, sample_tokens
from analysis.geometry.dimensions import (
    effective_rank,
    participation_ratio,
    principal_directions,
    random_frames,
    sharing_gain,
    squared_distances,
    subspace_overlap,
    two_nn,
)
from analysis.measures.text_analysis import StateAnalysis
from analysis.snapshots import Snapshot

logger = logging.getLogger(__name__)

POOLED_POINTS = 1000
"""Tokens of all languages together from which their intrinsic dimension is estimated, about."""

Key = tuple[str, str | None, str | None]
"""Metric, language, other language."""
Measured = tuple[float, float | None]
"""Value and chance level."""


@dataclass(kw_only=True)
class Compression(StateAnalysis):
    """Dimensions used by the token states of every layer, and how far languages use the same ones.

    Rows, per layer and (without layer) as the mean over layers, with an interval from a jackknife over groups of
    sentences: `effective_rank`, `participation_ratio`, `intrinsic_dimension` of all languages together and per
    language; `coding_rate` (bits a state); `sharing_gain` (bits; chance: languages turned at random), `sharing` (the
    same between 0 = random directions and 1 = equal directions); `subspace_overlap` per pair and as their mean
    (chance k / D).

    Raises (when measuring):
        FileNotFoundError, ValueError: see `read_texts` and `sample_tokens`; or fewer than 8 tokens of a language.
    """

    tokens_per_language: int = 400
    """Tokens of each language; below the hidden size, directions are estimated with much noise."""
    tokens_per_text: int = 8
    """Tokens drawn from one text at most."""
    subspace: int = 10
    """Leading directions whose overlap is measured."""
    precision: float = 0.5
    """epsilon of the coding rate, as a share of the root mean square of the states."""
    rotations: int = 4
    """Random rotations for the chance level of sharing."""
    groups: int = 10
    """Groups of sentences for the jackknife; 0 gives no intervals and costs a tenth."""
    seed: int = 0
    """Chooses the tokens, the groups and the rotations."""

    default_name: ClassVar[str] = "compression"
    headlines: ClassVar[tuple[str, ...]] = ("sharing",)
    positive: ClassVar[tuple[str, ...]] = (
        "tokens_per_language",
        "tokens_per_text",
        "max_length",
        "subspace",
        "rotations",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups == 1 or self.groups < 0:
            raise ValueError(f"{self.name}: groups={self.groups} must be 0 (no intervals) or at least 2")
        if self.precision <= 0:
            raise ValueError(f"{self.name}: precision={self.precision} must be positive")

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        texts = dict(sorted(self.read(snapshot).items()))
        sample = sample_tokens(
            snapshot,
            texts,
            self.tokens_per_language,
            self.extraction,
            tokens_per_text=self.tokens_per_text,
            seed=self.seed,
        )
        count = int(np.bincount(sample.language).min())
        if count < 8:
            scarce = sample.languages[int(np.bincount(sample.language).argmin())]
            raise ValueError(f"{self.name}: {scarce!r} has only {count} tokens, at least 8 are needed; give more texts")
        if count < self.tokens_per_language:
            logger.info("%s: %d tokens per language (%d wanted)", self.name, count, self.tokens_per_language)
        sites = find_sites(snapshot.model, "hidden")
        width = sites[0].num_units
        frames = random_frames(len(texts), width, min(count, width), self.rotations, self.seed)
        everything = torch.arange(count)
        groups = self._groups(count)
        by_layer = []
        for _, values in iter_token_states(snapshot, sample, sites, self.extraction):
            states = _by_language(values, sample, count)
            frames = frames.to(states)
            found = [self._spectral(states, sample.languages, frames)]
            # One rotation is enough for the spread between groups.
            found += [self._spectral(states[:, kept], sample.languages, frames[:1]) for kept in groups]
            for entry, dimension in zip(
                found, self._dimensions(states, sample.languages, [everything, *groups]), strict=True
            ):
                entry.update(dimension)
            by_layer.append(found)
        yield from self._rows([site.layer for site in sites], by_layer)

    def _groups(self, count: int) -> list[Tensor]:
        """For each group the places (of n) that stay when it is left out: the same number in every language."""
        if not self.groups:
            return []
        # Sorted by text, a language's tokens fall into consecutive blocks of whole or nearly whole sentences.
        edges = np.linspace(0, count, self.groups + 1).round().astype(int)
        place = torch.arange(count)
        return [place[(place < first) | (place >= last)] for first, last in pairwise(edges)]

    def _spectral(self, states: Tensor, languages: tuple[str, ...], frames: Tensor) -> dict[Key, Measured]:
        """Every measure of one layer that is read off covariances, from states (L, n, D)."""
        width = states.shape[2]
        centred = states - states.mean(dim=1, keepdim=True)
        spectrum = principal_directions(centred)
        flat = states.flatten(0, 1)
        pooled = principal_directions((flat - flat.mean(dim=0))[None]).values[0]
        sharing = sharing_gain(centred, spectrum, frames, self.precision)
        found: dict[Key, Measured] = {
            ("effective_rank", None, None): (float(effective_rank(pooled)), None),
            ("participation_ratio", None, None): (float(participation_ratio(pooled)), None),
            ("coding_rate", None, None): (sharing.pooled_rate, None),
            ("sharing_gain", None, None): (sharing.gain, sharing.gain_of_random),
            ("sharing", None, None): (sharing.share, 0.0),
        }
        ranks, ratios = effective_rank(spectrum.values), participation_ratio(spectrum.values)
        for number, language in enumerate(languages):
            found["effective_rank", language, None] = (float(ranks[number]), None)
            found["participation_ratio", language, None] = (float(ratios[number]), None)
        k = min(self.subspace, spectrum.values.shape[1])
        overlap = subspace_overlap(spectrum, k)
        pairs = list(combinations(range(len(languages)), 2))
        found["subspace_overlap", None, None] = (float(np.mean([float(overlap[i, j]) for i, j in pairs])), k / width)
        for i, j in pairs:
            found["subspace_overlap", languages[i], languages[j]] = (float(overlap[i, j]), k / width)
        return found

    def _dimensions(
        self, states: Tensor, languages: tuple[str, ...], parts: Sequence[Tensor]
    ) -> Iterator[dict[Key, Measured]]:
        """Intrinsic dimension for each choice of places (of n); distances are computed once."""
        apart = [squared_distances(own) for own in states]
        # All languages together: every s-th token, the cost grows with the square.
        stride = max(1, states.shape[0] * states.shape[1] // POOLED_POINTS)
        taken = torch.arange(0, states.shape[1], stride)
        together = squared_distances(states[:, taken].flatten(0, 1)).view(len(states), len(taken), len(states), -1)
        for part in parts:
            found: dict[Key, Measured] = {}
            kept = torch.isin(taken, part)
            pooled = together[:, kept][:, :, :, kept]
            size = pooled.shape[0] * pooled.shape[1]
            found["intrinsic_dimension", None, None] = (two_nn(pooled.reshape(size, size)), None)
            for language, squared in zip(languages, apart, strict=True):
                found["intrinsic_dimension", language, None] = (two_nn(squared[part][:, part]), None)
            yield found

    def _rows(self, layers: Sequence[int], by_layer: Sequence[Sequence[Mapping[Key, Measured]]]) -> Iterator[Row]:
        keys = list(by_layer[0][0])
        # (layers, 1 + groups, keys): all sentences first, then without each group.
        values = np.array([[[part[key][0] for key in keys] for part in parts] for parts in by_layer])
        chances = [[parts[0][key][1] for key in keys] for parts in by_layer]
        values = np.concatenate([values, values.mean(axis=0, keepdims=True)])
        means = [None if column[0] is None else float(np.mean(column)) for column in zip(*chances, strict=True)]
        for index, layer in enumerate([*layers, None]):
            for place, (metric, language, other) in enumerate(keys):
                value = float(values[index, 0, place])
                half = 1.96 * _jackknife_error(values[index, 1:, place]) if self.groups else None
                yield Row(
                    metric=metric,
                    value=value,
                    layer=layer,
                    language=language,
                    other_language=other,
                    chance=means[place] if layer is None else chances[index][place],
                    low=None if half is None else value - half,
                    high=None if half is None else value + half,
                )


def _by_language(values: Tensor, sample: TokenSample, count: int) -> Tensor:
    """(N, D) to (L, n, D) with equally many tokens of each language."""
    first = np.searchsorted(sample.language, np.arange(len(sample.languages)))
    chosen = (first[:, None] + np.arange(count)).ravel()
    return values[torch.from_numpy(chosen).to(values.device)].view(len(first), count, -1)


def _jackknife_error(without: np.ndarray) -> float:
    """Standard error from the values without each group (delete-a-group jackknife)."""
    groups = len(without)
    return float(np.sqrt((groups - 1) / groups * ((without - without.mean()) ** 2).sum()))
