"""How large a model, for how long, for so much text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from train.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from train.own.text import OwnText

EPOCHS = 4
"""Passes over the text that a run of the default length makes."""
BYTES_PER_TOKEN = 3
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
BYTES_PER_WORD = 60
"""Training text for each token of the vocabulary, at least."""
BLOCKS_PER_LANGUAGE = 8
"""Blocks of training text that the poorest language should fill."""


@dataclass(frozen=True)
class Size:
    """A model and a batch for up to `bytes` of training text."""

    bytes: float
    d_model: int
    num_layers: int
    attention_heads: int
    ffn_dim: int
    block_size: int
    batch_size: int
    vocab_size: int
    lr: float


SIZES = (
    Size(5e7, 128, 6, 4, 512, block_size=128, batch_size=16, vocab_size=8192, lr=3e-3),
    Size(2e9, 256, 12, 8, 1024, block_size=512, batch_size=32, vocab_size=32768, lr=1.5e-3),
    Size(float("inf"), 512, 24, 16, 4096, block_size=1024, batch_size=64, vocab_size=131072, lr=1e-3),
)
"""The demo's model, one between, and that of the study."""


def choose(own: Mapping[str, OwnText], steps: int | None) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The `model` section, the sizes of the `data` section, and optimizer steps.

    Raises:
        ValueError: a run of less than two steps.
    """
    amounts = [text.bytes for text in own.values()]
    size = next(size for size in SIZES if sum(amounts) <= size.bytes)
    block = size.block_size
    while block > 16 and block * BYTES_PER_TOKEN * BLOCKS_PER_LANGUAGE > min(amounts):
        block //= 2
    if steps is None:
        steps = min(2**17, max(64, EPOCHS * sum(amounts) // (BYTES_PER_TOKEN * block * size.batch_size)))
    if steps < 2:
        raise ValueError(f"--steps {steps}: a run has at least 2")
    model = {
        "d_model": size.d_model,
        "num_layers": size.num_layers,
        "attention_heads": size.attention_heads,
        "ffn_dim": size.ffn_dim,
        "max_position_embeddings": max(512, block),
        "optimizer": {"lr": size.lr, "warmup_steps": max(1, min(2000, steps // 10)), "floor": 0.1},
    }
    vocabulary = supported_vocabulary(own, size.vocab_size)
    return model, {"vocab_size": vocabulary, "block_size": block, "batch_size": size.batch_size}, steps


def supported_vocabulary(own: Mapping[str, OwnText], wanted: int) -> int:
    """`wanted` tokens, or as many halves of it as the text has merges for: little text supports few."""
    total = sum(text.bytes for text in own.values())
    while wanted > 512 and BYTES_PER_WORD * wanted > total:
        wanted //= 2
    if total > 2**24:
        return wanted
    texts = {language: [document.text for document in text.kept["train"]] for language, text in own.items()}
    while wanted > SMALLEST_VOCABULARY:
        try:
            train_tokenizer(texts, wanted)
            return wanted
        except ValueError:
            wanted = max(SMALLEST_VOCABULARY, wanted // 2)
    return wanted
