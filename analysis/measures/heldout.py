"""Held-out loss per language, in bits per byte: is a checkpoint the model that its name promises?

Stands beside every other curve: a broken file shows at once (BLOOM-560m at step 600,000 has the perplexity of noise),
and bits per byte compare models with different tokenizers, which nats per token do not.

Shapes:  N texts   V vocabulary
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from analysis.base import Attachment, Row
from analysis.cost import Shape
from analysis.extraction.losses import BITS, content_tokens, text_losses
from analysis.measures.text_analysis import TextAnalysis, vocabulary
from analysis.snapshots import Snapshot
from analysis.statistics import draw_again
from analysis.steering.samples import sample_table
from analysis.texts import shared_texts


@dataclass(kw_only=True)
class HeldOutLoss(TextAnalysis):
    """Bits per byte of held-out texts: the texts' negative log2 likelihood over their number of UTF-8 bytes.

    Rows, for every language and (language None) their mean:
        bits_per_byte           chance: a unigram model of the tokens, fitted on the training split; 95 % interval by
                                bootstrap over keys, each with its texts in all languages
        perplexity              per token, comparable only between checkpoints of one tokenizer
        unknown_share           share of tokens that are `<unk>` and so make the loss too small (only if there are any)

    Attached are texts that the model writes (`samples`), see `analysis.steering.samples`.
    """

    splits: list[str] = field(default_factory=lambda: ["valid"])
    """Splits that are scored."""
    train_split: str = "train"
    """Split on which the unigram baseline is fitted."""
    max_texts: int = 500
    """Texts per language, the first of the file."""
    max_train_texts: int = 2000
    """Texts per language for the unigram baseline."""
    max_length: int = 512
    """Tokens of context; longer texts go in windows of this length."""
    batch_tokens: int = 2048
    """Tokens per forward pass, padding included."""
    num_bootstrap: int = 1000
    seed: int = 0
    samples: int = 1
    """Texts per language that the model continues, to be read; 0: none."""

    default_name: ClassVar[str] = "held_out"
    not_settings: ClassVar[tuple[str, ...]] = (*TextAnalysis.not_settings, "samples")
    headlines: ClassVar[tuple[str, ...]] = ("bits_per_byte",)
    version: ClassVar[int] = 3
    positive: ClassVar[tuple[str, ...]] = ("max_texts", "max_train_texts", "num_bootstrap")
    not_negative: ClassVar[tuple[str, ...]] = (*TextAnalysis.not_negative, "samples")
    min_languages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 2:
            raise ValueError(f"{self.name}: max_length is {self.max_length}; at least 2 tokens are needed")

    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        prepared = self._kept.get(self._depends_on(snapshot), lambda: self._prepare(snapshot))
        places, drawn = self._draw_keys(prepared)
        values: list[float] = []
        resampled_means = np.zeros(self.num_bootstrap)
        for language, texts in prepared.items():
            nats = text_losses(
                snapshot.models,
                snapshot.tokenizer,
                texts.tokens,
                max_length=self.max_length,
                batch_tokens=self.batch_tokens,
            )
            values.append(float(nats.sum() / texts.num_bytes.sum() * BITS))
            times = drawn[:, places[language]]
            resampled = np.full(len(times), values[-1])  # where no text of the language is drawn
            np.divide(times @ nats * BITS, times @ texts.num_bytes, out=resampled, where=times.any(axis=1))
            resampled_means += resampled / len(prepared)
            yield _with_interval(values[-1], texts.unigram, resampled, language)
            # A broken file may have thousands of nats per token; perplexity stays a number up to exp(700).
            perplexity = math.exp(min(float(nats.sum()) / texts.num_tokens, 700.0))
            yield Row(metric="perplexity", value=perplexity, language=language, chance=float(vocabulary(snapshot)))
            if texts.num_unknown:
                yield Row(metric="unknown_share", value=texts.num_unknown / texts.num_tokens, language=language)
        unigram = float(np.mean([texts.unigram for texts in prepared.values()]))
        yield _with_interval(float(np.mean(values)), unigram, resampled_means, None)
        if self.samples:
            tokens = {language: texts.tokens for language, texts in prepared.items()}
            yield Attachment("samples", sample_table(snapshot, tokens, self.samples))

    def _draw_keys(self, prepared: Mapping[str, _HeldOut]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Place of every text's key among all keys, by language, and how often each key is drawn, (R, keys).

        A key and all its translations are drawn together: a sentence that is hard in one language is in the others.
        """
        keys, inverse = np.unique([key for texts in prepared.values() for key in texts.keys], return_inverse=True)
        ends = np.cumsum([len(texts.keys) for texts in prepared.values()])
        drawn = draw_again(len(keys), self.num_bootstrap, self.seed)
        return dict(zip(prepared, np.split(inverse, ends[:-1]), strict=True)), drawn

    def work(self, shape: Shape) -> float:
        return self.num_tokens(shape, self.max_texts)[1] * (shape.read + shape.head)

    def _prepare(self, snapshot: Snapshot) -> dict[str, _HeldOut]:
        """Tokens and baselines of every language: the same for all steps of a run."""
        tokenizer, held_out = snapshot.tokenizer, self.read(snapshot)
        training = shared_texts(self.texts, list(held_out), [self.train_split], snapshot.clones)
        prepared = {}
        for language, items in held_out.items():
            texts = [item.text for item in items[: self.max_texts]]
            fitted = content_tokens(tokenizer, [item.text for item in training[language][: self.max_train_texts]])
            tokens = content_tokens(tokenizer, texts)
            num_bytes = np.array([len(text.encode()) for text in texts], dtype=np.float64)
            unigram = float(unigram_losses(fitted, tokens, vocabulary(snapshot)).sum() / num_bytes.sum() * BITS)
            unknown = sum(row.count(tokenizer.unk_token_id) for row in tokens)
            keys = [item.key for item in items[: self.max_texts]]
            prepared[language] = _HeldOut(keys, tokens, num_bytes, unigram, unknown)
        return prepared


@dataclass(frozen=True)
class _HeldOut:
    """Held-out texts of one language and what models without context make of them."""

    keys: list[str]
    tokens: list[list[int]]
    num_bytes: np.ndarray
    """(N,) float64."""
    unigram: float
    """Bits per byte of the unigram model."""
    num_unknown: int

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens))


def _with_interval(value: float, chance: float, resampled: np.ndarray, language: str | None) -> Row:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Row(metric="bits_per_byte", value=value, language=language, chance=chance, low=float(low), high=float(high))


def unigram_losses(training: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], vocabulary: int) -> np.ndarray:
    """Negative log likelihood in nats, (N,), under a unigram model of `training` with Witten-Bell smoothing.

    p(t) = (c(t) + U / V) / (C + U) with c the counts, C their sum, U the number of distinct tokens, V the vocabulary.
    """
    counts = Counter(token for row in training for token in row)
    total, distinct = sum(counts.values()), len(counts)
    return np.array(
        [
            -sum(math.log((counts[token] + distinct / vocabulary) / (total + distinct)) for token in row)
            for row in tokens
        ]
    )
