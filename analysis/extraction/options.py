"""How texts are read through a model: one frozen value from the options of an analysis down to the forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.extraction.encoding import Batch, Encoded, encode_texts, iter_batches, padding_id
from analysis.snapshots import Snapshot

STORAGE = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Options of every pass over texts.

    Raises:
        ValueError: unknown storage, or a bound below 1.
    """

    pool: str = "max"
    """Over tokens that are neither padding nor special: `max`, `mean` or `last` for responses of units; `mean`,
    `weighted` or `last` for sentence vectors."""
    batch_tokens: int | None = None
    """Tokens per forward pass, padding included; changes results only by float rounding. None chooses by device and
    width, see `choose_batch_tokens`."""
    max_bytes: int = 2**30
    """Bound on what is held at once; fewer bytes mean more forward passes."""
    max_length: int = 512
    """Tokens after which a text is cut; the model's own context is a bound as well."""
    storage: Literal["float32", "float16"] = "float32"
    """How responses are held: float16 takes half the memory (AP differs by 1e-4 in the mean)."""

    def __post_init__(self) -> None:
        if self.storage not in STORAGE:
            raise ValueError(f"storage={self.storage!r}: choose one of {', '.join(STORAGE)}")
        for name, bound in (("batch_tokens", self.batch_tokens), ("max_length", self.max_length)):
            if bound is not None and bound < 1:
                raise ValueError(f"{name}={bound}: must be at least 1")

    @property
    def dtype(self) -> torch.dtype:
        """Of held responses."""
        return STORAGE[self.storage]

    def encode(self, snapshot: Snapshot, texts: Sequence[str]) -> Encoded:
        """Tokenize, cut to `max_length` and to the context of the model; raises as `encode_texts`."""
        return encode_texts(snapshot.tokenizer, texts, context_length(snapshot.model, self.max_length))

    def batches(self, snapshot: Snapshot, encoded: Encoded) -> Iterator[Batch]:
        """The forward passes over `encoded`."""
        size = choose_batch_tokens(snapshot.model) if self.batch_tokens is None else self.batch_tokens
        return iter_batches(encoded, size, padding_id(snapshot.tokenizer))

    def read(self, snapshot: Snapshot, texts: Sequence[str]) -> Sequence[Batch]:
        """The forward passes over texts, the same for every snapshot with this tokenizer; raises as `encode_texts`."""
        return _read(
            _Reading(
                tuple(texts),
                snapshot.tokenizer_hash,
                context_length(snapshot.model, self.max_length),
                choose_batch_tokens(snapshot.model) if self.batch_tokens is None else self.batch_tokens,
                snapshot.tokenizer,
            )
        )


@dataclass(frozen=True)
class _Reading:
    texts: tuple[str, ...]
    tokenizer_hash: str
    max_length: int
    batch_tokens: int
    tokenizer: PreTrainedTokenizerBase = field(compare=False)


@lru_cache(maxsize=2)
def _read(reading: _Reading) -> tuple[Batch, ...]:
    encoded = encode_texts(reading.tokenizer, reading.texts, reading.max_length)
    return tuple(iter_batches(encoded, reading.batch_tokens, padding_id(reading.tokenizer)))


DEFAULTS = Extraction()


def context_length(model: PreTrainedModel, wanted: int) -> int:
    """`wanted` tokens, or as many as the model has positions for."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(wanted, limit or wanted)


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids have to be: the first parameter that is not offloaded."""
    devices = (parameter.device for parameter in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def choose_batch_tokens(model: PreTrainedModel) -> int:
    """Tokens per forward pass: on a CPU as many as keep one activation of the residual stream within 2 MiB of cache
    (256 to 4,096), elsewhere 16,384. At width 1,024 a pass of 512 tokens is 1.4 times as fast as one of 2,048."""
    if input_device(model).type != "cpu":
        return 16_384
    width: int = model.config.get_text_config().hidden_size
    return min(4096, max(256, 2**19 // width))
