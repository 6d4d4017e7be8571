"""How probable generated text is to a model: bits per byte, under the model itself or under another one. The score is
over UTF-8 bytes, so that texts of different scripts and models with different tokenizers compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.checkpoints.loading import Loading, load_model, load_tokenizer
from analysis.extraction.losses import BITS, content_tokens, text_losses
from babelscope.files import file_stamp

MAX_LENGTH = 512
"""Tokens of context; longer texts go in windows of this length."""


def bits_per_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_tokens: int
) -> list[float | None]:
    """Bits per byte of every text under `model`; None for a text without content."""
    scored = sorted(with_content(tokenizer, texts))
    result: list[float | None] = [None] * len(texts)
    if not scored:
        return result
    losses = text_losses(
        [model],
        tokenizer,
        content_tokens(tokenizer, [texts[index] for index in scored]),
        max_length=MAX_LENGTH,
        batch_tokens=batch_tokens,
    )
    for index, loss in zip(scored, losses.tolist(), strict=True):
        result[index] = loss * BITS / len(texts[index].encode())
    return result


def with_content(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> set[int]:
    """Indices of the texts that have a token which is not special."""
    if not texts:
        return set()
    special = set(tokenizer.all_special_ids)
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return {index for index, row in enumerate(encoded) if any(token not in special for token in row)}


def bits_under(name: str, texts: Sequence[str], batch_tokens: int) -> list[float | None]:
    """Bits per byte of every text under the model of a local folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = check_folder(name).resolve()
    model, tokenizer = _judge(folder, tuple(map(file_stamp, sorted(folder.iterdir()))))
    return bits_per_text(model, tokenizer, texts, batch_tokens)


def check_folder(name: str) -> Path:
    """The folder of a fluency model; raises FileNotFoundError if there is none."""
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"fluency_model: {name}: no such folder; give a folder in the Hugging Face layout")
    return folder


@lru_cache(maxsize=1)
def _judge(folder: Path, stamps: tuple[tuple[int, int] | None, ...]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loaded once for all snapshots; again if the folder's files change, or another folder is asked for."""
    return load_model(folder, str(folder), Loading()), load_tokenizer(folder, str(folder))
