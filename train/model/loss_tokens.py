"""Linear cross-entropy by chunks of tokens, gradients made in the forward: the formulation for a GPU.

Each chunk's logits are computed once, turned into softmax minus one-hot in place, and multiplied on into both
gradients; the weight gradient accumulates over chunks in float32. The idea is Liger-Kernel's (Hsu et al. 2024, arXiv
2410.10989), its chunk size is not: each chunk passes once over the V x D gradient, hence thousands of tokens here.
Shapes: N tokens, V vocabulary, D hidden size, C tokens of a chunk.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a token that is no target."""
MAX_TOKEN_CHUNK = 8192
"""Most tokens per chunk of ``tokens`` on a GPU: above, passes over the weight gradient cost next to nothing."""
CUDA_CHUNK_LOGITS = 2**31
"""Most logits at a time of ``tokens`` on a GPU (4 GiB in bfloat16); also the reach of 32-bit indices in kernels."""
CPU_CHUNK_LOGITS = 2**26
"""Most logits at a time of ``tokens`` on a CPU (256 MiB in float32)."""


def token_chunk(num_vocabulary: int, device: torch.device, chunk: int | None) -> int:
    if chunk is not None:
        return chunk
    budget = CPU_CHUNK_LOGITS if device.type == "cpu" else CUDA_CHUNK_LOGITS
    fitting = budget // num_vocabulary
    return min(MAX_TOKEN_CHUNK, max(64, fitting - fitting % 64))


def _softmax_residual(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (C,) float32 and softmax minus one-hot (C, V) in the dtype of ``logits``; zero in ignored rows."""
    ignored = labels == IGNORE_INDEX
    column = labels.masked_fill(ignored, 0).unsqueeze(1)
    residual = logits.float() if logits.dtype != torch.float32 else logits
    target = residual.gather(1, column)
    highest = residual.amax(1, keepdim=True)
    residual.sub_(highest).exp_()
    total = residual.sum(1, keepdim=True)
    losses = (total.log() + highest - target).squeeze(1).masked_fill(ignored, 0.0)
    kept = ~ignored.unsqueeze(1)
    residual.mul_(kept / total).scatter_add_(1, column, -kept.float())
    return losses, residual.to(logits.dtype)


@lru_cache(maxsize=8)
def _has_float32_addmm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch multiplies ``dtype`` matrices into a float32 result on this device (CUDA, torch >= 2.8)."""
    one = torch.ones((16, 16), device=device, dtype=dtype)
    try:
        return torch.addmm(one.float(), one, one, out_dtype=torch.float32).dtype == torch.float32
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def _accumulate_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` with a float32 ``total`` and factors of lower precision."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif _has_float32_addmm(left.device, left.dtype):
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.add_(left @ right)


def token_chunk_losses(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int | None, dtype: torch.dtype) -> Tensor:
    rows = weight.to(dtype)
    size = token_chunk(weight.shape[0], hidden.device, chunk)
    losses = []
    for states, targets in zip(hidden.split(size), labels.split(size), strict=True):
        ignored = targets == IGNORE_INDEX
        logits = (states.to(dtype) @ rows.t()).float()
        target = logits.gather(1, targets.masked_fill(ignored, 0).unsqueeze(1)).squeeze(1)
        losses.append((logits.logsumexp(1) - target).masked_fill(ignored, 0.0))
    return torch.cat(losses)


class TokenChunks(torch.autograd.Function):
    """Sum of the losses; the gradients of that sum are made in the forward and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        chunk: int | None,
        dtype: torch.dtype,
    ) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        rows = weight.to(dtype)
        size = token_chunk(weight.shape[0], hidden.device, chunk)
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        for start in range(0, hidden.shape[0], size):
            states = hidden[start : start + size].to(dtype)
            losses, residual = _softmax_residual(states @ rows.t(), labels[start : start + size])
            total += losses.sum()
            if grad_hidden is not None:
                grad_hidden[start : start + size] = residual @ rows
            if grad_weight is not None:
                _accumulate_product(grad_weight, residual.t(), states)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # Scaled by the tensor itself: asking for its value would make the host wait for the device.
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None
