"""From token activations to one response per unit and text, over the tokens that count.

Padding and special tokens never enter: ml-selfcond (Suau et al., ICML 2022) lets its maximum run over padding, which
changes about 4 % of its values. Max is the pooling of that paper, mean that of lang_neuron (Kojima et al., NAACL 2024).
Called inside the hook by `analysis.extraction.responses`, so that token activations are gone before the next module
runs.

Shapes:  B texts of a batch   T tokens   U units of one site
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

POOLINGS = ("max", "mean", "last")


def make_pooling(how: str, content: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from activations (B, T, U) to float32 responses (B, U) for one batch.

    Args:
        how: `max`, `mean` or `last` over the tokens that count.
        content: (B, T) bool, True where a token counts; every row has at least one.

    Raises:
        ValueError: unknown pooling, or a row without a token that counts.
    """
    if how not in POOLINGS:
        raise ValueError(f"pool={how!r}: choose one of {', '.join(POOLINGS)}")
    if not bool(content.any(1).all()):
        raise ValueError("a text has no token that counts (only padding or special tokens)")
    if how == "last":
        position = torch.arange(content.shape[1], device=content.device)
        last = torch.where(content, position, -1).amax(1)
        rows = torch.arange(content.shape[0], device=content.device)
        # Moved once, not in every hook: the host waits for each copy onto a GPU.
        ends = cache(lambda device: (rows.to(device), last.to(device)))
        return lambda activations: activations[ends(activations.device)].float()
    runs = _runs(content)
    if runs is not None:
        return lambda activations: _pool_runs(how, activations, runs)
    mask = cache(content.to)
    return lambda activations: _pool_masked(how, activations, mask(activations.device))


def _runs(content: Tensor) -> list[tuple[int, int, int, int]] | None:
    """Blocks (row, row_end, token, token_end) of equal spans if every row's counting tokens are contiguous, else None.

    Batches are sorted by length, so a handful of slices covers them and no masked copy of (B, T, U) is made.
    """
    rows = content.cpu()
    starts = rows.int().argmax(1).tolist()
    counts = rows.sum(1).tolist()
    spans = [(start, start + count) for start, count in zip(starts, counts, strict=True)]
    blocks: list[tuple[int, int, int, int]] = []
    for row, (start, end) in enumerate(spans):
        if not bool(rows[row, start:end].all()):
            return None
        if blocks and blocks[-1][2:] == (start, end):
            blocks[-1] = (blocks[-1][0], row + 1, start, end)
        else:
            blocks.append((row, row + 1, start, end))
    return blocks


def _pool_runs(how: str, activations: Tensor, runs: list[tuple[int, int, int, int]]) -> Tensor:
    pooled = torch.empty(activations.shape[0], activations.shape[2], dtype=torch.float32, device=activations.device)
    for row, row_end, start, end in runs:
        span = activations[row:row_end, start:end]
        pooled[row:row_end] = span.amax(1) if how == "max" else span.mean(1, dtype=torch.float32)
    return pooled


def _pool_masked(how: str, activations: Tensor, content: Tensor) -> Tensor:
    mask = content[:, :, None]
    if how == "max":
        return activations.masked_fill(~mask, -torch.inf).amax(1).float()
    return activations.masked_fill(~mask, 0).sum(1, dtype=torch.float32) / mask.sum(1)
