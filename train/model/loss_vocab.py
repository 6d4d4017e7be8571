"""Linear cross-entropy by blocks of the vocabulary, in two passes: the formulation for a CPU.

The forward keeps a running log-sum-exp per token, as flash attention does over keys (Dao et al. 2022, arXiv
2205.14135); the backward recomputes each block of logits, writes its rows of the weight gradient once and adds to the
hidden gradient in float32. Nothing but the log-sum-exp lives in between, and a block of logits stays in the cache.
Shapes: N tokens, V vocabulary, D hidden size, B rows of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from train.model.loss_tokens import IGNORE_INDEX

VOCABULARY_BLOCK = 2048
"""Default rows of the weight per block of ``vocab``: 1,024 tokens x 2,048 float32 logits are 8 MB."""


class _BlockLogits:
    """Float32 logits of one vocabulary block after another, in two buffers that are reused.

    Fresh temporaries of this size would be mapped and faulted in by the system for each block.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, block: int) -> None:
        self.hidden = hidden  # (N, D) in the compute dtype
        self.weight = weight  # (V, D) in its own dtype
        self.block = min(block, weight.shape[0])
        self.wide = hidden.new_empty((hidden.shape[0], self.block), dtype=torch.float32)
        self.narrow = self.wide if hidden.dtype == torch.float32 else torch.empty_like(self.wide, dtype=hidden.dtype)

    def blocks(self) -> range:
        return range(0, self.weight.shape[0], self.block)

    def __call__(self, start: int) -> tuple[Tensor, Tensor]:
        """Logits (N, B) float32, valid until the next call, and the block's weight (B, D) in the compute dtype."""
        rows = self.weight[start : start + self.block].to(self.hidden.dtype)
        wide = self.wide.view(-1)[: self.hidden.shape[0] * rows.shape[0]].view(-1, rows.shape[0])
        if self.narrow is self.wide:
            torch.mm(self.hidden, rows.t(), out=wide)
        else:
            wide.copy_(torch.mm(self.hidden, rows.t(), out=self.cast(wide)))
        return wide, rows

    def cast(self, wide: Tensor) -> Tensor:
        """The buffer of the compute dtype in the shape of ``wide``."""
        return self.narrow.view(-1)[: wide.numel()].view(wide.shape)


def _in_block(labels: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Column of each token's label in the block (N, 1), clamped into it, and 1.0 where it really lies there (N, 1)."""
    column = (labels - start).unsqueeze(1)
    return column.clamp(0, width - 1), ((column >= 0) & (column < width)).float()


def _scan_vocabulary(hidden: Tensor, weight: Tensor, labels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the logits and the logit of the label, each (N,) float32."""
    logits_of = _BlockLogits(hidden, weight, block)
    highest = hidden.new_full((hidden.shape[0], 1), -torch.inf, dtype=torch.float32)
    total = torch.zeros_like(highest)
    target = torch.zeros_like(highest)
    for start in logits_of.blocks():
        logits, _ = logits_of(start)
        column, inside = _in_block(labels, start, logits.shape[1])
        target.addcmul_(logits.gather(1, column), inside)
        higher = torch.maximum(highest, logits.amax(1, keepdim=True))
        total.mul_(torch.exp(highest - higher)).add_(logits.sub_(higher).exp_().sum(1, keepdim=True))
        highest = higher
    return (highest + total.log()).squeeze(1), target.squeeze(1)


def vocabulary_losses(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int | None, dtype: torch.dtype) -> Tensor:
    log_normaliser, target = _scan_vocabulary(hidden.to(dtype), weight, labels, chunk or VOCABULARY_BLOCK)
    return (log_normaliser - target).masked_fill(labels == IGNORE_INDEX, 0.0)


class VocabularyBlocks(torch.autograd.Function):
    """Sum of the losses; the gradients are made in the backward, from the saved log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        chunk: int | None,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.block, ctx.dtype = chunk or VOCABULARY_BLOCK, dtype
        log_normaliser, target = _scan_vocabulary(hidden.to(dtype), weight, labels, ctx.block)
        ignored = labels == IGNORE_INDEX
        # exp(logit - inf) = 0 takes the ignored rows out of the backward without a mask of its own.
        ctx.save_for_backward(hidden, weight, labels, log_normaliser.masked_fill(ignored, torch.inf))
        return (log_normaliser - target).masked_fill(ignored, 0.0).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, log_normaliser = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        with torch.autocast(hidden.device.type, enabled=False):
            factor = hidden.to(ctx.dtype)
            log_normaliser = log_normaliser.unsqueeze(1)
            kept = torch.isfinite(log_normaliser).float()
            grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if need_hidden else None
            grad_weight = torch.empty_like(weight) if need_weight else None
            logits_of = _BlockLogits(factor, weight, ctx.block)
            for start in logits_of.blocks():
                logits, rows = logits_of(start)
                column, inside = _in_block(labels, start, rows.shape[0])
                residual = logits.sub_(log_normaliser).exp_().scatter_add_(1, column, -inside * kept)
                if logits_of.narrow is not logits_of.wide:
                    residual = logits_of.cast(residual).copy_(residual)
                if grad_hidden is not None:
                    grad_hidden.add_(residual @ rows)
                if grad_weight is not None:
                    grad_weight[start : start + rows.shape[0]].copy_(residual.t() @ factor).mul_(grad)
            if grad_hidden is not None:
                grad_hidden = grad_hidden.mul_(grad).to(hidden.dtype)
        return grad_hidden, grad_weight, None, None, None
