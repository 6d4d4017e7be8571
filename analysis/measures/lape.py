"""Neurons of a language by activation probability entropy, beside the concept neurons.

LAPE (Tang et al., ACL 2024, section 2.2): a unit after the nonlinearity fires on a token if its activation is above 0;
with p_l its firing probability on language l and p'_l = p_l / sum p, LAPE = -sum p'_l log p'_l. Units that fire often
in some language and have the lowest entropy are language neurons; a unit belongs to every language in which it fires
above the threshold. The paper counts on 10^8 tokens a language; on little text the rule finds as many neurons whether
languages differ or not, so counts stand beside those after the languages of the texts have been shuffled.

Shapes:  L languages   U units of one site   A all units   N texts   T tokens   R shuffles
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.extraction.encoding import Batch, iter_batches, padding_id
from analysis.extraction.hooks import force_units
from analysis.extraction.losses import token_losses
from analysis.extraction.passes import listen
from analysis.extraction.replicas import deal_batches
from analysis.extraction.sites import Site, UnitSpace, find_sites
from analysis.extraction.states import TokenSample, sample_tokens
from analysis.measures.text_analysis import TextAnalysis
from analysis.snapshots import Snapshot
from analysis.texts import Text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageNeurons:
    """Which units belong to which language."""

    entropy: np.ndarray
    """(A,) LAPE in nats; infinity for units that fire in no language above the threshold."""
    chosen: np.ndarray
    """(L, A) bool."""


def activation_entropy(probabilities: np.ndarray) -> np.ndarray:
    """LAPE (A,) in nats of firing probabilities (L, A); log L for a unit that never fires: it prefers no language."""
    total = probabilities.sum(axis=0)
    silent = total == 0
    share = np.where(silent, 1 / len(probabilities), probabilities / np.where(silent, 1.0, total))
    return -np.where(share > 0, share * np.log(np.where(share > 0, share, 1.0)), 0.0).sum(axis=0)


def find_language_neurons(probabilities: np.ndarray, percentile: float, share: float) -> LanguageNeurons:
    """The rule of the paper on firing probabilities (L, A).

    Args:
        percentile: of all probabilities; a unit must exceed it in some language to count, and belongs to the languages
            in which it does.
        share: of all units, those with the lowest entropy are kept (ties by unit index).
    """
    threshold = np.percentile(probabilities, percentile)
    above = probabilities > threshold
    entropy = np.where(above.any(axis=0), activation_entropy(probabilities), np.inf)
    count = min(max(1, round(share * probabilities.shape[1])), int(np.isfinite(entropy).sum()))
    lowest = np.argsort(entropy, kind="stable")[:count]
    kept = np.zeros(probabilities.shape[1], dtype=bool)
    kept[lowest] = True
    return LanguageNeurons(entropy, above & kept)


@dataclass(kw_only=True)
class Lape(TextAnalysis):
    """Language neurons of the MLP activations.

    Rows, chance = mean over shuffles of the texts' languages: `neurons` (number of language neurons) per layer, per
    language and overall, and per layer and language; `entropy` (mean LAPE / log L of units that fire above the
    threshold; 1 = no preference) per layer and overall, with p for one at most this low; with `damage`, `damage`
    (rise of the loss on `other_language`, nats per token, when the neurons of `language` are set to zero; chance: the
    same number of random units in the same layers).

    Raises (when measuring):
        FileNotFoundError, ValueError: see `read_texts` and `sample_tokens`.
    """

    tokens_per_language: int = 2000
    """Tokens of each language, about: all tokens of a text count."""
    percentile: float = 95.0
    """Firing threshold: percentile of all firing probabilities."""
    share: float = 0.01
    """Share of all units that may be language neurons."""
    shuffles: int = 20
    """Shuffles of the texts' languages for the chance level."""
    damage: bool = False
    """Also zero each language's neurons and measure the loss of every language (costs 2 L + 1 forward passes)."""
    damage_tokens: int = 500
    """Tokens of each language for the loss."""
    seed: int = 0
    """Chooses texts, shuffles and random units."""
    batch_tokens: int = 2048
    """Tokens per forward pass, padding included."""

    default_name: ClassVar[str] = "lape"
    headlines: ClassVar[tuple[str, ...]] = ("entropy",)
    positive: ClassVar[tuple[str, ...]] = ("tokens_per_language", "max_length", "shuffles", "damage_tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.percentile < 100:
            raise ValueError(f"{self.name}: percentile={self.percentile} must lie between 0 and 100")
        if not 0 < self.share <= 1:
            raise ValueError(f"{self.name}: share={self.share} must lie in (0, 1]")

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        texts = dict(sorted(self.read(snapshot).items()))
        sample = self._sample(snapshot, texts, self.tokens_per_language)
        space = UnitSpace(find_sites(snapshot.model, "mlp_act"))
        counts, lengths, owner = count_active_tokens(snapshot, sample, space, self.batch_tokens)
        measured = _firing(counts, lengths, owner, len(texts))
        found = find_language_neurons(measured, self.percentile, self.share)
        generator = np.random.default_rng(self.seed)
        shuffled = []
        for _ in range(self.shuffles):
            probabilities = _firing(counts, lengths, generator.permutation(owner), len(texts))
            shuffled.append(find_language_neurons(probabilities, self.percentile, self.share))
        yield from self._neuron_rows(found, shuffled, space, sample.languages)
        yield from self._entropy_rows(found, shuffled, space, len(texts))
        if self.damage:
            yield from self._damage_rows(snapshot, found, space, self._sample(snapshot, texts, self.damage_tokens))

    def _sample(self, snapshot: Snapshot, texts: Mapping[str, Sequence[Text]], tokens: int) -> TokenSample:
        return sample_tokens(snapshot, texts, tokens, self.extraction, tokens_per_text=self.max_length, seed=self.seed)

    def _neuron_rows(
        self,
        found: LanguageNeurons,
        shuffled: Sequence[LanguageNeurons],
        space: UnitSpace,
        languages: Sequence[str],
    ) -> Iterator[Row]:
        counts = [_count(one, space) for one in (found, *shuffled)]  # (sites + 1, L + 1) each
        chance = np.mean(counts[1:], axis=0)
        for i, layer in enumerate([*(site.layer for site in space.sites), None]):
            for j, language in enumerate([*languages, None]):
                yield Row(
                    metric="neurons",
                    value=float(counts[0][i, j]),
                    layer=layer,
                    language=language,
                    chance=float(chance[i, j]),
                )

    def _entropy_rows(
        self, found: LanguageNeurons, shuffled: Sequence[LanguageNeurons], space: UnitSpace, num_languages: int
    ) -> Iterator[Row]:
        spans = [(site.layer, slice(*space.offsets[i : i + 2])) for i, site in enumerate(space.sites)]
        for layer, span in [*spans, (None, slice(None))]:
            value = _mean_entropy(found.entropy[span], num_languages)
            null = [_mean_entropy(one.entropy[span], num_languages) for one in shuffled]
            yield Row(
                metric="entropy",
                value=value,
                layer=layer,
                chance=float(np.mean(null)),
                p=(1 + sum(one <= value for one in null)) / (1 + len(null)),
            )

    def _damage_rows(
        self, snapshot: Snapshot, found: LanguageNeurons, space: UnitSpace, sample: TokenSample
    ) -> Iterator[Row]:
        generator = np.random.default_rng(self.seed)
        whole = language_losses(snapshot, sample, {}, self.batch_tokens)
        for number, language in enumerate(sample.languages):
            own: dict[Site, tuple[Tensor, Tensor]] = {}
            random: dict[Site, tuple[Tensor, Tensor]] = {}
            for index, site in enumerate(space.sites):
                units = np.flatnonzero(found.chosen[number, slice(*space.offsets[index : index + 2])])
                others = np.sort(generator.choice(site.num_units, len(units), replace=False))
                own[site] = (torch.from_numpy(units), torch.zeros(len(units)))
                random[site] = (torch.from_numpy(others), torch.zeros(len(units)))
            damage = language_losses(snapshot, sample, own, self.batch_tokens) - whole
            control = language_losses(snapshot, sample, random, self.batch_tokens) - whole
            for other, value, chance in zip(sample.languages, damage, control, strict=True):
                yield Row(
                    metric="damage",
                    value=float(value),
                    language=language,
                    other_language=other,
                    chance=float(chance),
                )


def _count(neurons: LanguageNeurons, space: UnitSpace) -> np.ndarray:
    """Language neurons per site and language, (sites + 1, L + 1); last: over all sites, of any language."""
    member = np.concatenate([neurons.chosen, neurons.chosen.any(axis=0, keepdims=True)])  # (L + 1, A)
    by_site = np.add.reduceat(member.astype(np.int64), space.offsets[:-1], axis=1)
    return np.concatenate([by_site, by_site.sum(axis=1, keepdims=True)], axis=1).T


def _mean_entropy(entropy: np.ndarray, num_languages: int) -> float:
    """Mean over units that fire, as a share of log L; 1 if none does."""
    finite = entropy[np.isfinite(entropy)]
    return float(finite.mean() / np.log(num_languages)) if len(finite) else 1.0


def _firing(counts: np.ndarray, lengths: np.ndarray, owner: np.ndarray, num_languages: int) -> np.ndarray:
    """Firing probabilities (L, A) from counts (N, A) of active tokens when text i belongs to language owner[i]."""
    member = (owner == np.arange(num_languages)[:, None]).astype(np.float32)  # (L, N)
    return (member @ counts) / np.maximum(member @ lengths, 1)[:, None]


def count_active_tokens(
    snapshot: Snapshot, sample: TokenSample, space: UnitSpace, batch_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every text the tokens on which each unit is above 0, (N, A) float32; its tokens (N,); its language (N,).

    Raises:
        ValueError: an activation that is NaN, naming the site.
    """
    encoded = sample.encoded
    counts = np.zeros((len(encoded), space.num_units), dtype=np.float32)
    start = dict(zip(space.sites, space.offsets.tolist(), strict=False))

    def reader(_: PreTrainedModel, batch: Batch) -> Callable[[Site, Tensor], None]:
        def count(site: Site, activations: Tensor) -> None:
            if bool(torch.isnan(activations).any()):
                raise ValueError(f"activations of {site.module} (layer {site.layer}) hold NaN: broken weights?")
            active = (activations > 0) & batch.content.to(activations.device)[:, :, None]
            places = slice(start[site], start[site] + site.num_units)
            counts[batch.indices.numpy(), places] = active.sum(dim=1).float().cpu().numpy()

        return count

    listen(snapshot.models, iter_batches(encoded, batch_tokens, padding_id(snapshot.tokenizer)), space.sites, reader)
    lengths = np.array([sum(flags) for flags in encoded.content], dtype=np.float32)
    owner = np.zeros(len(encoded), dtype=np.int64)
    owner[sample.text] = sample.language
    return counts, lengths, owner


def language_losses(
    snapshot: Snapshot, sample: TokenSample, forcing: Mapping[Site, tuple[Tensor, Tensor]], batch_tokens: int
) -> np.ndarray:
    """Mean loss of every language in nats per content token, (L,), with some units forced."""
    encoded = sample.encoded
    loss, tokens = np.zeros(len(encoded)), np.zeros(len(encoded))

    def run(model: PreTrainedModel, batch: Batch) -> None:
        with force_units(model, forcing):
            nats, rows = token_losses(model, batch)
        places, size = batch.indices.numpy(), len(batch.indices)
        loss[places] = np.bincount(rows.numpy(), nats.double().numpy(), size)
        tokens[places] = np.bincount(rows.numpy(), minlength=size)

    deal_batches(snapshot.models, iter_batches(encoded, batch_tokens, padding_id(snapshot.tokenizer)), run)
    owner = np.zeros(len(encoded), dtype=np.int64)
    owner[sample.text] = sample.language
    number = len(sample.languages)
    return np.bincount(owner, loss, number) / np.maximum(np.bincount(owner, tokens, number), 1)
