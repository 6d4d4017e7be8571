"""Texts to right-padded batches of similar length: the one way in which every measure feeds a model.

Right padding is not a matter of taste: XGLM without explicit positions is silently wrong under left padding. Texts are
sorted by length, so little is spent on padding, and the longest batch comes first, so that memory is short at once or
never.

Shapes:  B texts of a batch   T tokens of its longest text
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from analysis.texts import ClonedText

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """Tokenized texts in their original order."""

    ids: list[list[int]]
    content: list[list[bool]]
    """True where a token is part of the text, False where it is special (`</s>`, `<s>`, padding)."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Batch:
    """One right-padded batch."""

    indices: Tensor
    """(B,) int64: places of the texts in the original order."""
    input_ids: Tensor
    """(B, T) int64."""
    attention_mask: Tensor
    """(B, T) int64: 0 on padding."""
    content: Tensor
    """(B, T) bool: False on padding and special tokens."""
    start: int = 0
    """Number of texts in the batches before it."""


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None = None) -> Encoded:
    """Tokenize with the special tokens that the tokenizer itself adds; longer texts are cut to `max_length` tokens.

    Raises:
        ValueError: no texts, or a text of which nothing but special tokens is left.
    """
    if len(texts) == 0:
        raise ValueError("no texts to encode")
    backend = tokenizer.backend_tokenizer
    before = backend.truncation
    encoded = tokenizer(
        list(texts),
        truncation=max_length is not None,
        max_length=max_length,
        padding=False,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    # A fast tokenizer keeps the limit of its last call, and is saved with it: a live one would cut the texts of whoever
    # reads the snapshot's tokenizer.json.
    if before is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(**before)
    special = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "sep", "cls", "mask")} - {
        None
    }
    ids: list[list[int]] = encoded["input_ids"]
    unshifted = frozenset(tokenizer.all_special_ids)
    ids = [
        shifted(row, text.shift, unshifted) if isinstance(text, ClonedText) else row
        for row, text in zip(ids, texts, strict=True)
    ]
    content = [
        [not flag and token not in special for token, flag in zip(row, flags, strict=True)]
        for row, flags in zip(ids, encoded["special_tokens_mask"], strict=True)
    ]
    for index, row in enumerate(content):
        if not any(row):
            raise ValueError(f"text {index} ({texts[index][:60]!r}) has no token but special ones: remove empty texts")
    cut = sum(len(row) == max_length for row in ids)
    if cut:
        log.debug("%d of %d texts have %d tokens or more and were cut there", cut, len(ids), max_length)
    return Encoded(ids, content)


def shifted(ids: Sequence[int], shift: int, special_ids: Collection[int]) -> list[int]:
    """Ids of a text in a cloned language: those of its original plus `shift`, special tokens aside."""
    return [token if token in special_ids else token + shift for token in ids]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, or any other where there is none: padding is masked, so its value never matters."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def iter_batches(encoded: Encoded, batch_tokens: int, pad_id: int) -> Iterator[Batch]:
    """Batches of at most `batch_tokens` tokens with padding (or one text, if it alone is longer), longest first.

    A batch of an eighth of that or more also ends where its texts become shorter than 7/8 of its longest: few texts are
    of so different lengths that half of a full batch would be padding.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens={batch_tokens}: must be at least 1")
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded.ids[index]))
    start = 0
    while start < len(order):
        length = len(encoded.ids[order[start]])
        chosen = order[start : start + max(1, batch_tokens // length)]
        least = max(1, batch_tokens // (8 * length))
        alike = sum(8 * len(encoded.ids[index]) >= 7 * length for index in chosen)
        chosen = chosen[: max(least, alike)]
        input_ids = torch.full((len(chosen), length), pad_id, dtype=torch.int64)
        attention_mask = torch.zeros((len(chosen), length), dtype=torch.int64)
        content = torch.zeros((len(chosen), length), dtype=torch.bool)
        for row, index in enumerate(chosen):
            count = len(encoded.ids[index])
            input_ids[row, :count] = torch.tensor(encoded.ids[index])
            attention_mask[row, :count] = 1
            content[row, :count] = torch.tensor(encoded.content[index])
        yield Batch(torch.tensor(chosen), input_ids, attention_mask, content, start)
        start += len(chosen)
