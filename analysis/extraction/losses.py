"""Losses of tokens and of whole texts: the only place where a model's vocabulary head runs.

Shapes:  N texts   W windows   B windows of a batch   T tokens   M scored tokens   V vocabulary
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast

from analysis.extraction.encoding import Batch, Encoded, encode_texts, iter_batches, padding_id
from analysis.extraction.options import context_length
from analysis.extraction.passes import run_body
from analysis.extraction.replicas import deal_batches

BITS = 1.0 / math.log(2.0)
"""Bits in a nat."""
LOGITS_AT_ONCE = 512
"""Tokens whose logits over the vocabulary are held at once."""


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

    A text longer than `max_length` - 1 tokens (or than the context of the model) is scored in windows, each behind its
    own start token; every token is scored exactly once. `models` is one model, or copies of it on several devices.

    Raises:
        ValueError: a loss that is not finite.
    """
    start, width = start_token(tokenizer), context_length(models[0], max_length) - 1
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
            raise ValueError("the loss of a text is not finite: the weights are broken")
        window_nats.index_add_(0, batch.indices[rows], nats.double())

    window_nats = torch.zeros(len(windows), dtype=torch.float64)
    deal_batches(models, iter_batches(encoded, batch_tokens, padding_id(tokenizer)), run)
    np.add.at(losses, owners, window_nats.numpy())
    return losses


def token_losses(model: PreTrainedModel, batch: Batch, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Losses in nats of all content tokens but a text's first, (M,) float32, and the row of the batch of each, (M,).

    Args:
        wanted: (B, T) bool, content tokens that alone are scored, at least one behind a first: the head costs more than
            the body where the vocabulary is large.
    """
    hidden = run_body(model, batch)
    scored = (batch.content if wanted is None else wanted)[:, 1:]
    chosen = hidden[:, :-1][scored.to(hidden.device)]
    targets = batch.input_ids[:, 1:][scored]
    losses = [
        F.cross_entropy(logits, target.to(logits.device), reduction="none").cpu()
        for logits, target in zip(_iter_logits(model, chosen), targets.split(LOGITS_AT_ONCE), strict=True)
    ]
    return torch.cat(losses), scored.nonzero()[:, 0]


class _Output(BaseModelOutputWithPast):
    """Hidden states alone; whatever else a head looks for (router logits, cross-attentions) is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _Given(nn.Module):
    """Stands where the body was and gives hidden states that are there already."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: object, **__: object) -> _Output:
        return _Output(last_hidden_state=self.hidden)


def _iter_logits(model: PreTrainedModel, hidden: Tensor) -> Iterator[Tensor]:
    """Logits (m, V) float32 of the hidden states (M, D), `LOGITS_AT_ONCE` at a time.

    What lies between body and logits is the model's own business (Gemma's soft cap, Cohere's and Granite's scale), so
    its own `forward` makes them, on a shallow copy whose body only hands over the states.
    """
    top = copy.copy(model)
    top._modules = dict(model._modules)
    for part in hidden.split(LOGITS_AT_ONCE):
        top._modules[model.base_model_prefix] = _Given(part[None])
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            # Not through `model(...)`: an instance may carry a `forward` that is bound to the whole model (accelerate).
            tokens = torch.zeros(1, len(part), dtype=torch.int64, device=hidden.device)
            logits: Tensor = type(model).forward(top, input_ids=tokens, use_cache=False, return_dict=True).logits
        yield logits[0].float()
