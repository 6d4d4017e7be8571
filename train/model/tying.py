"""One gradient for a weight that is both embedding and head, without a second dense V x D tensor.

Autograd gives a tied weight two gradients and adds them: the head's, which is dense, and the embedding's, which is
dense too although only the rows of the B x T input tokens differ from zero. With 256,008 rows the second one costs half
a gigabyte, and on a CPU a good part of the step, for nothing. Here the weight passes once through `tie`; the backward
of that one node sees the head's gradient and adds the rows of the embedding in place. On a GPU the detour gains about 1
% and in-place row sums are not reproducible there, so the usual path stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(eq=False)
class TiedWeight:
    """A weight (V, D) on its way into one forward: once as a head, any number of times as an embedding."""

    head: Tensor
    """The weight (V, D) as the head must use it."""
    anchor: Tensor
    """Scalar that makes the backward of `tie` wait for every look-up."""
    rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Token ids (N,) and gradients (N, D) that look-ups left in this backward."""

    def look_up(self, input_ids: Tensor, padding_idx: int | None) -> Tensor:
        """Embeddings (..., D) of ``input_ids``; the row of ``padding_idx`` gets no gradient from here."""
        return _LookUp.apply(self.anchor, self.head.detach(), input_ids, padding_idx, self.rows)


def tie(weight: Tensor) -> TiedWeight:
    """Split ``weight`` (V, D) for one forward."""
    rows: list[tuple[Tensor, Tensor]] = []
    head, anchor = _Tie.apply(weight, rows)
    return TiedWeight(head, anchor, rows)


class _Tie(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        ctx.rows = rows
        return weight.view_as(weight), weight.new_zeros(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        # Without a loss on the head `grad` is zeros, made by autograd. An expanded gradient has no rows of its own.
        if not grad.is_contiguous():
            grad = grad.contiguous()
        for index, values in ctx.rows:
            grad.index_add_(0, index, values.to(grad.dtype))
        ctx.rows.clear()
        return grad, None


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        weight: Tensor,
        input_ids: Tensor,
        padding_idx: int | None,
        rows: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        ctx.save_for_backward(input_ids)
        ctx.padding_idx, ctx.rows = padding_idx, rows
        return F.embedding(input_ids, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (input_ids,) = ctx.saved_tensors
        values = grad.flatten(0, -2)
        index = input_ids.flatten()
        if ctx.padding_idx is not None:
            values = values.masked_fill((index == ctx.padding_idx).unsqueeze(1), 0.0)
        ctx.rows.append((index, values))
        return grad.new_zeros(()), None, None, None, None
