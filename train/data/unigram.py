"""The level that a language model has to beat: bits per byte of a model that only knows how frequent each token is."""

from __future__ import annotations

import math

import numpy as np

from train.data.batches import IGNORED, ValidationBatches
from train.data.streams import TokenStream

MAX_TOKENS = 50_000_000
"""Frequencies are counted on this much training text at most."""


def unigram_bits_per_byte(
    training: TokenStream, validation: ValidationBatches, *, vocab_size: int, separator_id: int
) -> float:
    """Bits per byte on exactly the tokens that `validation` predicts, with add-one smoothed frequencies of `training`.

    The separator is left out of the frequencies as it is out of the predictions.
    """
    counts = np.ones(vocab_size)
    for chunk in training.chunks(limit=MAX_TOKENS):
        counts += np.bincount(chunk, minlength=vocab_size)
    counts[separator_id] = 0
    nats = -np.log(np.maximum(counts, 1) / counts.sum())
    total_nats, total_bytes = 0.0, 0
    for batch in validation:
        labels = batch["labels"].numpy()
        total_nats += float(nats[labels[labels != IGNORED]].sum())
        total_bytes += int(batch["num_bytes"].sum())
    return total_nats / math.log(2) / total_bytes
