"""Batched sampling with forced units: many seeds, prompts and forcings at once, with a key-value cache.

Every text draws its own uniform number per position from a counter-based generator keyed by its seed, and the token is
read off the inverse of its own cumulative distribution: what a seed writes does not depend on the texts beside it, on
the batch size or on global random numbers (but for a draw that falls within float rounding of the border between two
tokens). ml-selfcond and its forks generate one seed at a time, and leave seed 0 (the former: every seed) unseeded.

Shapes:  B texts of a batch   T tokens of the padded prompts   V vocabulary
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.extraction.hooks import Forcing, force_units
from analysis.extraction.options import input_device
from analysis.extraction.sites import Site

SUM_BLOCK = 256
"""Tokens of the vocabulary that are summed together when a token is drawn."""

RowForcing = Mapping[Site, tuple[Tensor, Tensor]]
"""For one text: units (M,) int64 and the values (M,) float32 that they are held at."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the next token is chosen. The defaults are plain sampling as Kojima et al. (NAACL 2024) use it."""

    temperature: float = 0.8
    """Logits are divided by it; 0 takes the most probable token (greedy)."""
    top_k: int = 0
    """Only the k most probable tokens; 0 means all."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability; 1 means all."""
    max_new_tokens: int = 64
    """Number of new tokens after which a text ends."""
    min_new_tokens: int = 0
    """The end token is not allowed before this many new tokens."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; use 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; use 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; use a share above 0 and up to 1")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; use at least 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(f"min_new_tokens is {self.min_new_tokens}; use 0 to {self.max_new_tokens}")


@dataclass(frozen=True)
class Job:
    """One text to be written."""

    prompt: tuple[int, ...]
    """Token ids, at least one (the start token)."""
    seed: int
    forcing: RowForcing | None = None


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    jobs: Sequence[Job],
    decoding: Decoding,
    *,
    end_id: int | None,
    batch_size: int = 64,
    positions: Literal["all", "new"] = "all",
    use_cache: bool = True,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """New tokens of every job, in order, the end token left out.

    Args:
        end_id: token that ends a text; None lets every text run to `max_new_tokens`.
        batch_size: texts at once; jobs of the same forcing are put together first, which is faster.
        positions: hold units at `all` positions, or only at those after the prompt (`new`).
        on_batch: called with the number of finished jobs after each batch.

    Raises:
        ValueError: no jobs, an empty prompt, a prompt that leaves no room in the model's context.
    """
    _check(model, jobs, decoding, batch_size)
    written: list[list[int]] = [[] for _ in jobs]
    for indices in _batches(jobs, batch_size):
        batch = [jobs[index] for index in indices]
        for index, tokens in zip(indices, _decode(model, batch, decoding, end_id, positions, use_cache), strict=True):
            written[index] = tokens
        if on_batch is not None:
            on_batch(len(indices))
    return written


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, start_token: str | None) -> tuple[int, ...]:
    """Token ids of a prompt, start token included exactly once.

    The start token is `start_token`, else `</s>` (XGLM's own prefix, and the document separator of BLOOM, whose
    tokenizer adds none: METHOD, after Kojima et al.), else the tokenizer's start token.

    Raises:
        ValueError: the tokenizer has no such token, or no start token at all.
    """
    vocabulary = tokenizer.get_vocab()
    if start_token is not None and start_token not in vocabulary:
        raise ValueError(f"the tokenizer has no token {start_token!r}; choose another start_token")
    name = start_token or ("</s>" if "</s>" in vocabulary else tokenizer.bos_token)
    if name is None:
        raise ValueError("the tokenizer has no start token; name one with start_token")
    start = int(tokenizer.convert_tokens_to_ids(name))  # type: ignore[arg-type]
    content = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    return (start, *content)


def uniforms(seed: int, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1): the random numbers of one text, a function of its seed alone."""
    return np.random.Generator(np.random.Philox(key=seed % 2**64)).random(count)


def choose_tokens(logits: Tensor, uniform: Tensor, decoding: Decoding) -> Tensor:
    """(B,) tokens for logits (B, V): the inverse of the cumulative distribution at `uniform` (B,) in [0, 1).

    Greedy decoding ignores `uniform`. Ties at the border of top-k are all kept.
    """
    if decoding.temperature == 0:
        return logits.argmax(dim=-1)
    scaled = logits.float() / decoding.temperature
    if 0 < decoding.top_k < scaled.shape[-1]:
        border = scaled.topk(decoding.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < border, -torch.inf)
    weights = (scaled - scaled.amax(dim=-1, keepdim=True)).exp_()
    if decoding.top_p < 1:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        before = ordered.double().cumsum(dim=-1) - ordered
        outside = before >= decoding.top_p * ordered.double().sum(dim=-1, keepdim=True)
        # the token that crosses the border stays
        weights = torch.zeros_like(weights).scatter(-1, order, ordered.masked_fill(outside, 0.0))
    return _invert(weights, uniform)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first token (B,) at which the running sum of `weights` (B, V) exceeds the share `uniform` of its total.

    Sums over blocks first, so that only one block a text needs a running sum in double precision: over a vocabulary of
    256,000 a running sum in single precision would lose rare tokens, and in double precision cost more than the model.
    """
    rows = torch.arange(len(weights), device=weights.device)
    blocks = F.pad(weights, (0, -weights.shape[-1] % SUM_BLOCK)).unflatten(-1, (-1, SUM_BLOCK))
    sums = blocks.sum(dim=-1)
    ends = sums.double().cumsum(dim=-1)
    target = uniform.to(ends) * ends[:, -1]
    # rounding must not reach a block or a token of probability zero
    block = torch.minimum(torch.searchsorted(ends, target[:, None], right=True)[:, 0], _last_positive(sums))
    target = target - torch.where(block > 0, ends[rows, (block - 1).clamp(min=0)], 0.0)
    inside = blocks[rows, block]
    chosen = torch.searchsorted(inside.double().cumsum(dim=-1), target[:, None], right=True)[:, 0]
    return block * SUM_BLOCK + torch.minimum(chosen, _last_positive(inside))


def _last_positive(values: Tensor) -> Tensor:
    """Index (B,) of the last entry above zero in every row of (B, N)."""
    return values.shape[-1] - 1 - values.flip(-1).gt(0).to(torch.uint8).argmax(dim=-1)


def _check(model: PreTrainedModel, jobs: Sequence[Job], decoding: Decoding, batch_size: int) -> None:
    if not jobs:
        raise ValueError("no texts to generate")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; use at least 1")
    longest = max(len(job.prompt) for job in jobs)
    if min(len(job.prompt) for job in jobs) == 0:
        raise ValueError("a prompt is empty: a model needs a start token; give a text or a start token")
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and longest + decoding.max_new_tokens > context:
        raise ValueError(
            f"a prompt of {longest} tokens and {decoding.max_new_tokens} new ones exceed the model's context of "
            f"{context}; lower max_new_tokens or shorten the prompt"
        )


def _batches(jobs: Sequence[Job], batch_size: int) -> Iterator[list[int]]:
    """Indices of jobs: those of one forcing together, then by length, so that batches are uniform where they can be."""
    groups: dict[int, int] = {}
    for job in jobs:
        groups.setdefault(id(job.forcing), len(groups))
    order = sorted(range(len(jobs)), key=lambda i: (groups[id(jobs[i].forcing)], len(jobs[i].prompt), i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _decode(
    model: PreTrainedModel,
    batch: Sequence[Job],
    decoding: Decoding,
    end_id: int | None,
    positions: Literal["all", "new"],
    use_cache: bool,
) -> list[list[int]]:
    device = input_device(model)
    width = max(len(job.prompt) for job in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.ones(len(batch), width + decoding.max_new_tokens, dtype=torch.long)
    for row, job in enumerate(batch):  # left padding: all texts end at the same place
        ids[row, width - len(job.prompt) :] = torch.tensor(job.prompt)
        mask[row, : width - len(job.prompt)] = 0
    places = (mask.cumsum(dim=-1) - 1).clamp(min=0).to(device)
    ids, mask = ids.to(device), mask.to(device)
    draws = torch.from_numpy(np.stack([uniforms(job.seed, decoding.max_new_tokens) for job in batch])).to(device)
    takes_positions, takes_last = _accepts(model, "position_ids"), _accepts(model, "logits_to_keep")
    alive = torch.ones(len(batch), dtype=torch.bool, device=device)
    chosen: list[Tensor] = []
    cache: Any = None
    with _forced(model, batch, positions, width):
        for step in range(decoding.max_new_tokens):
            end = width + step
            inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask[:, :end], "use_cache": use_cache}
            if takes_positions:
                inputs["position_ids"] = places[:, end - ids.shape[1] : end]
            if takes_last:
                inputs["logits_to_keep"] = 1
            if cache is not None:
                inputs["past_key_values"] = cache
            output = model(**inputs)
            cache = output.past_key_values if use_cache else None
            logits = output.logits[:, -1].float()
            if end_id is not None and step < decoding.min_new_tokens:
                logits[:, end_id] = -torch.inf
            token = choose_tokens(logits, draws[:, step], decoding)
            chosen.append(token)
            if end_id is not None:
                alive &= token != end_id
                # Asking a GPU makes it wait; what is written after the end is cut off anyway.
                if (device.type == "cpu" or step % 8 == 7) and not bool(alive.any()):
                    break
            ids = token[:, None] if use_cache else torch.cat([ids, token[:, None]], dim=-1)
    rows: list[list[int]] = torch.stack(chosen, dim=1).tolist()
    return [tokens[: tokens.index(end_id)] if end_id in tokens else tokens for tokens in rows]


def _accepts(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward takes `argument`, be it by way of a base class to which it hands the rest."""
    return any(
        argument in inspect.signature(vars(cls)["forward"]).parameters
        for cls in type(model).__mro__
        if "forward" in vars(cls)
    )


def _forced(
    model: PreTrainedModel, batch: Sequence[Job], positions: Literal["all", "new"], width: int
) -> AbstractContextManager[None]:
    """Hold the units of every job of the batch; jobs of one forcing share a plain vector, which is cheapest."""
    if all(job.forcing is batch[0].forcing for job in batch):
        shared: Mapping[Site, Forcing] = batch[0].forcing or {}
        return force_units(model, shared, positions=positions, prompt_length=width) if shared else nullcontext()
    sites = sorted({site for job in batch for site in (job.forcing or {})})
    forcing: dict[Site, Forcing] = {}
    for site in sites:
        entries = [(row, *job.forcing[site]) for row, job in enumerate(batch) if job.forcing and site in job.forcing]
        units = torch.cat([units for _, units, _ in entries])
        values = torch.cat([values for _, _, values in entries])
        rows = torch.cat([torch.full((len(units),), row, dtype=torch.long) for row, units, _ in entries])
        forcing[site] = (units, values, rows)
    return force_units(model, forcing, positions=positions, prompt_length=width)
