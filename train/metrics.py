"""Validation loss of many languages in the units that compare: bits per byte, and perplexity of a token.

Bits per byte = nats / (ln 2 x UTF-8 bytes) compares across tokenizers and languages (Gao et al. 2020, "The Pile",
section 3.1); perplexity = exp(nats / tokens) only between models of one tokenizer. torchmetrics' own `Perplexity` takes
logits of all tokens, which the fused loss never holds; this metric takes sums, and torchmetrics adds them over ranks.

Shapes:  L languages
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class LanguageLoss(Metric):
    """Nats, UTF-8 bytes and predicted tokens of every language, summed over batches and ranks.

    Args:
        num_languages: L.
        dtype: of the sums; the widest float of the device keeps them exact over many batches.
    """

    full_state_update = False
    sums: Tensor
    """(L, 3): nats, bytes, tokens."""

    def __init__(self, num_languages: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(num_languages, 3, dtype=dtype), dist_reduce_fx="sum")

    def update(self, language: int, nats: Tensor, num_bytes: Tensor, num_tokens: Tensor) -> None:
        self.sums[language] += torch.stack([nats, num_bytes, num_tokens]).to(self.sums.dtype)

    def compute(self) -> list[tuple[float, float] | None]:
        """(bits per byte, perplexity) of each language; None for one without text (`limit_val_batches`)."""
        return [
            (bits_per_byte(nats, num_bytes), perplexity(nats, num_tokens)) if num_bytes else None
            for nats, num_bytes, num_tokens in self.sums.tolist()
        ]


def bits_per_byte(nats: float, num_bytes: float) -> float:
    """Cross-entropy summed over a text, in bits, per UTF-8 byte of the text."""
    return nats / math.log(2) / num_bytes


def perplexity(nats: float, num_tokens: float) -> float:
    """exp of the mean cross-entropy of a token; infinite for a model that has diverged beyond all numbers."""
    mean = nats / max(num_tokens, 1.0)
    return math.exp(mean) if mean < 700 else math.inf
