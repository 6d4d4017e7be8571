"""Neurons of a language by activation probability entropy, beside the concept neurons.

LAPE (Tang et al., ACL 2024, section 2.2): a unit after the nonlinearity fires on a token if its activation is above 0;
with p_l its firing probability on language l and p'_l = p_l / sum p, LAPE = -sum p'_l log p'_l. Units that fire often
in some language and have the lowest entropy are language neurons; a unit belongs to every language in which it fires
above the threshold. The paper counts on 10^8 tokens a language; on little text the rule finds as many neurons whether
languages differ or not, so everything stands beside the same after the languages of the texts have been shuffled.

Shapes:  L languages   U units of one site   A all units   N texts   T tokens   R shuffles
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.cost import Shape
from analysis.extraction.encoding import Batch
from analysis.extraction.options import Extraction
from analysis.extraction.passes import listen
from analysis.extraction.sites import Site, UnitSpace, find_sites
from analysis.extraction.states import TokenSample
from analysis.measures.text_analysis import TextAnalysis
from analysis.snapshots import Snapshot


@dataclass(frozen=True)
class LanguageNeurons:
    """Which units belong to which language."""

    entropy: np.ndarray
    """(A,) LAPE in nats; infinity for units that fire in no language above the threshold."""
    chosen: np.ndarray
    """(L, A) bool."""

    @property
    def any_language(self) -> np.ndarray:
        """(A,) bool."""
        return np.any(self.chosen, axis=0)


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

    Rows, chance = mean over shuffles of the texts' languages: `entropy` (mean LAPE / log L of the units that fire above
    the threshold; 1 = no preference) per layer and overall, with p for one at most this low; `language_units` (share of
    all language neurons that lie in this layer). Where no unit fires above the threshold the one row is
    `language_units` 0, without a layer: there are none.

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
    seed: int = 0
    """Chooses texts and shuffles."""
    batch_tokens: int = 2048
    """Tokens per forward pass, padding included."""

    default_name: ClassVar[str] = "lape"
    headlines: ClassVar[tuple[str, ...]] = ("entropy",)
    version: ClassVar[int] = 2
    positive: ClassVar[tuple[str, ...]] = ("tokens_per_language", "shuffles")
    fractions: ClassVar[tuple[str, ...]] = ("share",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.percentile < 100:
            raise ValueError(f"{self.name}: percentile={self.percentile} must lie between 0 and 100")

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        sample = self.sample(snapshot, self.tokens_per_language, self.max_length, self.seed)
        languages = len(sample.languages)
        space = UnitSpace(find_activations(snapshot.model))
        counts, lengths, owner = count_active_tokens(snapshot, sample, space, self.extraction)
        generator = np.random.default_rng(self.seed)
        owners = [owner, *(generator.permutation(owner) for _ in range(self.shuffles))]
        found, *shuffled = (
            find_language_neurons(_firing(counts, lengths, one, languages), self.percentile, self.share)
            for one in owners
        )
        spans = [(site.layer, slice(*space.offsets[i : i + 2])) for i, site in enumerate(space.sites)]
        for layer, span in [*spans, (None, slice(None))]:
            yield from _entropy_row(layer, span, found, shuffled, languages)
            if layer is not None and found.any_language.any():
                null = [_share_within(one, span) for one in shuffled]
                value = _share_within(found, span)
                yield Row(metric="language_units", value=value, layer=layer, chance=float(np.mean(null)))
        if not found.any_language.any():  # as in the first steps of training
            yield Row(metric="language_units", value=0.0)

    def work(self, shape: Shape) -> float:
        languages, available = self.num_tokens(shape)
        return min(available, self.tokens_per_language * languages) * shape.read


def find_activations(model: PreTrainedModel) -> tuple[Site, ...]:
    """Where it shows whether a neuron fires, a site a block.

    Units of a plain MLP after the nonlinearity. In a gated one it is the activation alone, without the value that it is
    multiplied by, as in the source (RUCAIBox/Language-Specific-Neurons, activation.py); that is read before the
    nonlinearity, since SiLU, GELU and ReLU keep the sign.
    """
    gates = tuple(site for site in find_sites(model, "linear") if site.kind == "mlp.gate")
    return gates or find_sites(model, "mlp_act")


def _entropy_row(
    layer: int | None, span: slice, found: LanguageNeurons, shuffled: Sequence[LanguageNeurons], num_languages: int
) -> Iterator[Row]:
    value = _mean_entropy(found.entropy[span], num_languages)
    null = [other for one in shuffled if (other := _mean_entropy(one.entropy[span], num_languages)) is not None]
    if value is not None and null:
        p = (1 + sum(one <= value for one in null)) / (1 + len(null))
        yield Row(metric="entropy", value=value, layer=layer, chance=float(np.mean(null)), p=p)


def _mean_entropy(entropy: np.ndarray, num_languages: int) -> float | None:
    """Mean over units that fire, as a share of log L; None if none does."""
    finite = entropy[np.isfinite(entropy)]
    return float(finite.mean() / np.log(num_languages)) if len(finite) else None


def _share_within(neurons: LanguageNeurons, span: slice) -> float:
    """Share of the language neurons that lie in `span`; 0 if there are none at all."""
    return float(neurons.any_language[span].sum() / max(1, neurons.any_language.sum()))


def _firing(counts: np.ndarray, lengths: np.ndarray, owner: np.ndarray, num_languages: int) -> np.ndarray:
    """Firing probabilities (L, A) from counts (N, A) of active tokens when text i belongs to language owner[i]."""
    member = (owner == np.arange(num_languages)[:, None]).astype(np.float32)  # (L, N)
    return (member @ counts) / np.maximum(member @ lengths, 1)[:, None]


def count_active_tokens(
    snapshot: Snapshot, sample: TokenSample, space: UnitSpace, extraction: Extraction
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

    listen(snapshot.models, extraction.batches(snapshot, encoded), space.sites, reader)
    lengths = np.array([sum(flags) for flags in encoded.content], dtype=np.float32)
    owner = np.zeros(len(encoded), dtype=np.int64)
    owner[sample.text] = sample.language
    return counts, lengths, owner
