"""Held-out loss per language, in bits per byte: is a checkpoint the model that its name promises?

Stands beside every other curve: a broken file shows at once (BLOOM-560m at step 600,000 has the perplexity of noise),
and bits per byte compare models with different tokenizers, which nats per token do not. In the analysis list as
`HeldOutLoss`.

Shapes:  N texts   W windows   B windows of a batch   T tokens   D hidden size   V vocabulary
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.base import Analysis, Row
from analysis.checkpoints.audit import hash_tokenizer
from analysis.extraction.encoding import Batch, Encoded, encode_texts, iter_batches, padding_id
from analysis.extraction.options import input_device
from analysis.extraction.replicas import deal_batches
from analysis.extraction.sites import body
from analysis.snapshots import Snapshot
from analysis.texts import read_texts

BITS = 1.0 / math.log(2.0)


@dataclass(kw_only=True)
class HeldOutLoss(Analysis):
    """Bits per byte of held-out texts: the texts' negative log2 likelihood over their number of UTF-8 bytes.

    Rows, for every language and (language None) their mean:
        bits_per_byte           chance: a unigram model of the tokens, fitted on the training split; 95 % interval by
                                bootstrap over texts
        bits_per_byte_uniform   every token of the vocabulary equally likely
        perplexity              per token, comparable only between checkpoints of one tokenizer
        unknown_share           share of tokens that are `<unk>` and so make the loss too small (only if there are any)
    """

    default_name: ClassVar[str] = "held_out"

    texts: Path
    """Parquet or JSONL file, see `analysis.texts`."""
    languages: list[str] = field(default_factory=list)
    """ISO 639-1 codes; none means all of the file."""
    split: str = "valid"
    """Split that is scored."""
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
    _kept: tuple[str, dict[str, _HeldOut]] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 2:
            raise ValueError(f"{self.name}: max_length is {self.max_length}; at least 2 tokens are needed")
        if min(self.max_texts, self.max_train_texts, self.num_bootstrap) < 1:
            raise ValueError(f"{self.name}: max_texts, max_train_texts and num_bootstrap must be at least 1")

    def measure(self, snapshot: Snapshot) -> Iterable[Row]:
        prepared = self._prepare(snapshot.tokenizer)
        limit = getattr(snapshot.model.config.get_text_config(), "max_position_embeddings", None) or self.max_length
        generator = np.random.default_rng(self.seed)
        values: list[float] = []
        resampled_means = np.zeros(self.num_bootstrap)
        for language, texts in prepared.items():
            nats = text_losses(
                snapshot.models,
                snapshot.tokenizer,
                texts.tokens,
                max_length=min(self.max_length, limit),
                batch_tokens=self.batch_tokens,
            )
            values.append(float(nats.sum() / texts.num_bytes.sum() * BITS))
            drawn = generator.integers(len(nats), size=(self.num_bootstrap, len(nats)))
            resampled = nats[drawn].sum(axis=1) / texts.num_bytes[drawn].sum(axis=1) * BITS
            resampled_means += resampled / len(prepared)
            yield _with_interval(values[-1], texts.unigram, resampled, language)
            yield Row(metric="bits_per_byte_uniform", value=texts.uniform, language=language)
            # A broken file may have thousands of nats per token; perplexity stays a number up to exp(700).
            perplexity = math.exp(min(float(nats.sum()) / texts.num_tokens, 700.0))
            yield Row(metric="perplexity", value=perplexity, language=language, chance=float(len(snapshot.tokenizer)))
            if texts.num_unknown:
                yield Row(metric="unknown_share", value=texts.num_unknown / texts.num_tokens, language=language)
        unigram = float(np.mean([texts.unigram for texts in prepared.values()]))
        uniform = float(np.mean([texts.uniform for texts in prepared.values()]))
        yield _with_interval(float(np.mean(values)), unigram, resampled_means, None)
        yield Row(metric="bits_per_byte_uniform", value=uniform)

    def _prepare(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, _HeldOut]:
        """Tokens and baselines of every language: the same for all steps of a run, so kept for the last tokenizer."""
        key = hash_tokenizer(tokenizer)
        if self._kept is None or self._kept[0] != key:
            held_out = read_texts(self.texts, languages=self.languages, splits=[self.split])
            training = read_texts(self.texts, languages=list(held_out), splits=[self.train_split])
            prepared = {}
            for language, items in held_out.items():
                texts = [item.text for item in items[: self.max_texts]]
                fitted = content_tokens(tokenizer, [item.text for item in training[language][: self.max_train_texts]])
                prepared[language] = _held_out(tokenizer, texts, fitted)
            self._kept = (key, prepared)
        return self._kept[1]


@dataclass(frozen=True)
class _HeldOut:
    """Held-out texts of one language and what models without context make of them."""

    tokens: list[list[int]]
    num_bytes: np.ndarray
    """(N,) float64."""
    unigram: float
    """Bits per byte of the unigram model."""
    uniform: float
    """Bits per byte of equally likely tokens."""
    num_unknown: int

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens))


def _held_out(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], training: list[list[int]]) -> _HeldOut:
    tokens = content_tokens(tokenizer, texts)
    num_bytes = np.array([len(text.encode()) for text in texts], dtype=np.float64)
    unigram = unigram_losses(training, tokens, len(tokenizer)).sum() / num_bytes.sum() * BITS
    uniform = sum(map(len, tokens)) * math.log2(len(tokenizer)) / num_bytes.sum()
    unknown = sum(row.count(tokenizer.unk_token_id) for row in tokens)
    return _HeldOut(tokens, num_bytes, float(unigram), float(uniform), unknown)


def _with_interval(value: float, chance: float, resampled: np.ndarray, language: str | None) -> Row:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Row(metric="bits_per_byte", value=value, language=language, chance=chance, low=float(low), high=float(high))


def content_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of every text without the special tokens around it."""
    encoded = encode_texts(tokenizer, texts)
    return [
        [token for token, content in zip(ids, flags, strict=True) if content]
        for ids, flags in zip(encoded.ids, encoded.content, strict=True)
    ]


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands before a text: the special token that the tokenizer itself puts there, else `</s>` (the separator of
    training documents in BLOOM and GPT-2), else the start token.

    Raises:
        ValueError: the tokenizer has none of them.
    """
    encoded = encode_texts(tokenizer, ["a"])
    if not encoded.content[0][0]:
        return encoded.ids[0][0]
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    raise ValueError("the tokenizer has neither an end nor a start token, so the first token cannot be predicted")


def text_losses(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[Sequence[int]],
    *,
    max_length: int,
    batch_tokens: int,
) -> np.ndarray:
    """Negative log likelihood of every text in nats, (N,) float64.

    A text longer than `max_length` - 1 tokens is scored in windows, each behind its own start token; every token is
    scored exactly once. `models` is one model, or copies of it on several devices.

    Raises:
        ValueError: a loss that is not finite.
    """
    start, width = start_token(tokenizer), max_length - 1
    windows, owners = [], []
    for owner, row in enumerate(tokens):
        for at in range(0, len(row), width):
            windows.append([start, *row[at : at + width]])
            owners.append(owner)
    encoded = Encoded(windows, [[False] + [True] * (len(window) - 1) for window in windows])
    losses = np.zeros(len(tokens), dtype=np.float64)

    def run(model: PreTrainedModel, batch: Batch) -> None:
        nats, rows = token_losses(model, batch)
        if not bool(torch.isfinite(nats).all()):
            raise ValueError("the loss of a held-out text is not finite: the weights are broken")
        window_nats.index_add_(0, batch.indices[rows], nats.double())

    window_nats = torch.zeros(len(windows), dtype=torch.float64)
    deal_batches(models, iter_batches(encoded, batch_tokens, padding_id(tokenizer)), run)
    np.add.at(losses, owners, window_nats.numpy())
    return losses


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


def token_losses(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Losses in nats of all content tokens but a text's first, (M,) float32, and the row of the batch of each, (M,)."""
    device = input_device(model)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        hidden = body(model)(
            input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
        )[0]
        scored = batch.content[:, 1:]
        chosen = hidden[:, :-1][scored.to(hidden.device)]
        nats = _head_losses(model.get_output_embeddings(), chosen, batch.input_ids[:, 1:][scored])
    return nats, scored.nonzero()[:, 0]


def _head_losses(head: nn.Module, hidden: Tensor, targets: Tensor, chunk: int = 512) -> Tensor:
    """Cross-entropy of every token, (B T,), float32, without ever holding more than `chunk` x V logits."""
    losses = [
        F.cross_entropy(head(part).float(), wanted.to(part.device), reduction="none").cpu()
        for part, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(losses)
