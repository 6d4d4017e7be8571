"""What all probes for language have in common: sampled tokens, folds, and scores with intervals over sentences.

Shapes:  Y layers   N sampled tokens   S seeds   G keys
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from analysis.base import Analysis, Row
from analysis.extraction.options import Extraction
from analysis.extraction.sites import Site, find_sites
from analysis.extraction.states import TokenSample, iter_token_states, sample_tokens
from analysis.probes.folds import Fold, cluster_intervals, make_folds
from analysis.snapshots import Snapshot
from analysis.texts import Text, read_texts

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TokenProbe(Analysis):
    """Base of the probes: settings of the token sample and of its division."""

    texts: str
    """Texts by language, parquet or JSONL (see `analysis.texts`)."""
    splits: list[str] = field(default_factory=lambda: ["valid", "test"])
    """Splits to draw from: text that the model did not train on."""
    languages: list[str] = field(default_factory=list)
    """ISO 639-1 codes; empty means all languages of the file."""
    tokens_per_language: int = 1000
    """Training tokens of each language."""
    test_tokens_per_language: int = 500
    """Test tokens of each language."""
    tokens_per_text: int = 20
    """Tokens drawn from one text at most: more texts make more independent observations."""
    max_length: int = 128
    """Tokens after which a text is cut."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """One probe per seed, each with its own division of the sentences."""
    batch_tokens: int = 4096
    """Tokens per forward pass."""
    max_bytes: int = 2**30
    """Bound on the token states held at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tokens_per_language", "test_tokens_per_language", "tokens_per_text", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.name}: {name}={getattr(self, name)} must be at least 1")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"{self.name}: seeds={self.seeds} must be different numbers, at least one")
        if len(self.languages) == 1:
            raise ValueError(f"{self.name}: one language ({self.languages[0]!r}) cannot be told apart; name two")
        self._loaded: dict[str, list[Text]] | None = None

    def draw(self, snapshot: Snapshot) -> tuple[TokenSample, list[Fold]]:
        """Sample tokens, a tenth more than needed so that every fold can be balanced, and divide them.

        Probes of equal settings share one draw of a snapshot.

        Raises:
            FileNotFoundError, ValueError: see `read_texts` and `make_folds`; or a file with one language.
        """
        key = self._sample_key()
        if key not in snapshot.shared:
            snapshot.shared[key] = self._draw(snapshot)
        sample, folds = snapshot.shared[key]
        return sample, folds

    def states(self, snapshot: Snapshot) -> Iterator[tuple[Site, Tensor]]:
        """States (N, D) float32 of the drawn tokens at every layer, embeddings first; not to be changed in place.

        They are kept for the next probe of this snapshot if those of all layers fit into half of `max_bytes`.

        Raises:
            ValueError: see `iter_token_states`.
        """
        key = ("states", *self._sample_key())
        if key in snapshot.shared:
            yield from snapshot.shared[key]
            return
        sample, _ = self.draw(snapshot)
        sites = find_sites(snapshot.model, "hidden")
        how = Extraction(batch_tokens=self.batch_tokens, max_bytes=self.max_bytes)
        stream = iter_token_states(snapshot, sample, sites, how)
        size = sum(site.num_units for site in sites) * len(sample) * torch.float32.itemsize
        if size <= self.max_bytes // 2:
            stream = iter(snapshot.shared.setdefault(key, list(stream)))
        yield from stream

    def _sample_key(self) -> tuple[Hashable, ...]:
        """What the draw depends on."""
        numbers = self.tokens_per_language, self.test_tokens_per_language, self.tokens_per_text, self.max_length
        return ("tokens", self.texts, tuple(self.splits), tuple(self.languages), *numbers, tuple(self.seeds))

    def _draw(self, snapshot: Snapshot) -> tuple[TokenSample, list[Fold]]:
        if self._loaded is None:
            self._loaded = read_texts(self.texts, languages=self.languages, splits=self.splits)
        if len(self._loaded) < 2:
            raise ValueError(f"{self.name}: {self.texts} has texts in {', '.join(self._loaded)} only; two are needed")
        sample = sample_tokens(
            snapshot,
            self._loaded,
            int(1.1 * (self.tokens_per_language + self.test_tokens_per_language)),
            tokens_per_text=self.tokens_per_text,
            max_length=self.max_length,
        )
        folds = make_folds(sample, self.seeds, self.tokens_per_language, self.test_tokens_per_language)
        given = int(folds[0].train.sum()) // len(sample.languages)
        if given < self.tokens_per_language:
            logger.info("%s: %d training tokens per language (%d wanted)", self.name, given, self.tokens_per_language)
        return sample, folds


def score_rows(
    metric: str,
    scores: np.ndarray,
    mask: np.ndarray,
    sample: TokenSample,
    layers: Sequence[int],
    chance: float,
    seeds: Sequence[int] = (),
) -> Iterator[Row]:
    """Mean score per layer and over layers with an interval from one bootstrap over keys; per layer and seed on demand.

    Args:
        scores: (Y, S, N), such as whether the prediction was right.
        mask: (S, N) bool, the tokens that count; at least one a seed.
        seeds: names of the S seeds if each is to have its row.
    """
    keyed = csr_matrix((np.ones(len(sample)), (np.arange(len(sample)), sample.key)))  # (N, G)
    sums = np.stack([(scores * mask)[:, number] @ keyed for number in range(len(mask))], axis=1)  # (Y, S, G)
    sums = np.concatenate([sums, sums.mean(axis=0, keepdims=True)])  # last: the mean over layers
    totals = mask @ keyed  # (S, G)
    low, high = cluster_intervals(sums, totals)
    value = sums.sum(axis=-1) / totals.sum(axis=-1)  # (Y + 1, S)
    for index, layer in enumerate([*layers, None]):
        yield Row(
            metric=metric,
            value=float(value[index].mean()),
            layer=layer,
            chance=chance,
            low=float(low[index]),
            high=float(high[index]),
        )
        if layer is not None:
            for seed, own in zip(seeds, value[index], strict=False):
                yield Row(metric=metric, value=float(own), layer=layer, seed=seed, chance=chance)
