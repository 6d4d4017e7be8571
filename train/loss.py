"""Cross-entropy of a linear head that never holds the N x V logits.

With V = 256,008 the logits of one 16k-token micro-batch would take 59 GB in the usual implementation, and the head is
half of the model's arithmetic. Two exact formulations of the same loss avoid them:

- ``vocab`` (CPU): two passes over blocks of the vocabulary. The forward keeps a running log-sum-exp per token, as flash
  attention does over keys; the backward recomputes each block of logits, writes its rows of the weight gradient once
  and adds to the hidden gradient in float32. A block of logits stays in the cache. 8 N V D FLOPs.
- ``tokens`` (CUDA): chunks of tokens against the whole vocabulary, gradients made in the forward, so logits are
  computed once; the weight gradient accumulates over chunks in float32. 6 N V D FLOPs, but each chunk passes once over
  the V x D gradient, hence chunks of thousands of tokens.

``naive`` is the textbook reference. ``liger`` and ``cce`` hand over to the Triton kernels of Liger-Kernel (Hsu et al.
2024, arXiv 2410.10989) and cut-cross-entropy (Wijmans et al. 2024, arXiv 2411.09009) where these are installed.

Called by `train.model` (training and validation loss). Shapes: N tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Backend = Literal["auto", "vocab", "tokens", "naive", "liger", "cce"]
BACKENDS: tuple[str, ...] = ("auto", "vocab", "tokens", "naive", "liger", "cce")
IGNORE_INDEX = -100

VOCABULARY_BLOCK = 2048
"""Default rows of the weight per block of ``vocab``: 1,024 tokens x 2,048 float32 logits are 8 MB."""
MAX_TOKEN_CHUNK = 8192
"""Most tokens per chunk of ``tokens`` on a GPU: above, passes over the weight gradient cost next to nothing."""
CUDA_CHUNK_LOGITS = 2**31
"""Most logits at a time of ``tokens`` on a GPU (4 GiB in bfloat16); also the reach of 32-bit indices in kernels."""
CPU_CHUNK_LOGITS = 2**26
"""Most logits at a time of ``tokens`` on a CPU (256 MiB in float32)."""


@torch.compiler.disable
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    num_items: int | Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    backend: Backend = "auto",
    chunk: int | None = None,
) -> Tensor:
    """Cross-entropy in nats of ``labels`` under the logits ``hidden @ weight.T``, differentiable in both factors.

    Products run in the autocast dtype where autocast is on, else in the dtype of ``hidden``; log-sum-exp and sums are
    float32. Labels are taken as they are: shifting them by one is the caller's business.

    Args:
        hidden: (N, D) states before the head.
        weight: (V, D) head weight, row = token.
        labels: (N,) token ids, or ``ignore_index`` where there is no target.
        reduction: ``"mean"`` divides the sum by the number of targets, ``"sum"`` does not.
        num_items: divides the sum by this number instead: the count of targets over all micro-batches and ranks of one
            optimizer step, so that accumulation and DDP give the loss of the whole batch.
        backend: ``"auto"`` is ``vocab`` for reduced precision on the CPU, ``tokens`` otherwise.
        chunk: rows of the weight per block (``vocab``) or tokens per chunk (``tokens``, ``liger``).

    Returns:
        Float32 scalar; 0 with zero gradients when no label is a target.

    Raises:
        ValueError: shapes, labels or options that do not fit, or a backend that cannot run here.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}; use token_losses for losses per token")
    if num_items is not None and reduction == "sum":
        raise ValueError("num_items divides the loss, so it cannot be combined with reduction='sum'")
    _check_inputs(hidden, weight, labels, ignore_index, chunk)
    dtype = _compute_dtype(hidden)
    name = choose_backend(backend, hidden.device, dtype)
    if chunk is not None and name in ("naive", "cce"):
        raise ValueError(f"backend {name!r} has no chunks: leave chunk unset")

    with torch.autocast(hidden.device.type, enabled=False):
        if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)) and name in _LOSSES:
            total = _LOSSES[name](hidden, weight, labels, ignore_index, chunk, dtype).sum()
        else:
            total = _TOTALS[name](hidden, weight, labels, ignore_index, chunk, dtype)
    if reduction == "sum":
        return total
    if num_items is None:
        num_items = (labels != ignore_index).sum()
    return total / (num_items.clamp(min=1) if isinstance(num_items, Tensor) else max(num_items, 1))


@torch.compiler.disable
@torch.no_grad()
def token_losses(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    backend: Backend = "auto",
    chunk: int | None = None,
) -> Tensor:
    """Loss of every token, (N,) float32 in nats, 0 where ``labels`` is ``ignore_index``; builds no graph.

    Arguments as `linear_cross_entropy`; the optional GPU backends, which only reduce, are answered by ``tokens``.
    """
    _check_inputs(hidden, weight, labels, ignore_index, chunk)
    dtype = _compute_dtype(hidden)
    name = choose_backend(backend, hidden.device, dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        return _LOSSES.get(name, _token_chunk_losses)(hidden, weight, labels, ignore_index, chunk, dtype)


def choose_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The formulation that ``"auto"`` stands for; any other name is checked and returned."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown loss backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend != "auto":
        return backend
    # In float32 a CPU is bound by the products, so computing logits once wins; in bfloat16 it is bound by memory.
    return "vocab" if device.type == "cpu" and dtype != torch.float32 else "tokens"


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _check_inputs(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, chunk: int | None) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be (N, D) and (V, D)")
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} must have one entry per row of hidden {tuple(hidden.shape)}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be positive, not {chunk}")
    legal = ((labels >= 0) & (labels < weight.shape[0])) | (labels == ignore_index)
    if labels.device.type != "cpu":
        torch._assert_async(legal.all(), "a label lies outside the vocabulary")  # no wait for the device
    elif not legal.all():
        raise ValueError(f"label {int(labels[~legal][0])} lies outside the vocabulary of {weight.shape[0]} tokens")


def _token_chunk(num_vocabulary: int, device: torch.device, chunk: int | None) -> int:
    if chunk is not None:
        return chunk
    budget = CPU_CHUNK_LOGITS if device.type == "cpu" else CUDA_CHUNK_LOGITS
    fitting = budget // num_vocabulary
    return min(MAX_TOKEN_CHUNK, max(64, fitting - fitting % 64))


# ---- vocab: two passes over blocks of the vocabulary -----------------------------------------------------------------


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


def _vocabulary_losses(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, chunk: int | None, dtype: torch.dtype
) -> Tensor:
    log_normaliser, target = _scan_vocabulary(hidden.to(dtype), weight, labels, chunk or VOCABULARY_BLOCK)
    return (log_normaliser - target).masked_fill(labels == ignore_index, 0.0)


class _VocabularyBlocks(torch.autograd.Function):
    """Sum of the losses; the gradients are made in the backward, from the saved log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        ignore_index: int,
        chunk: int | None,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.block, ctx.dtype = chunk or VOCABULARY_BLOCK, dtype
        log_normaliser, target = _scan_vocabulary(hidden.to(dtype), weight, labels, ctx.block)
        ignored = labels == ignore_index
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
        return grad_hidden, grad_weight, None, None, None, None


# ---- tokens: chunks of tokens against the whole vocabulary -----------------------------------------------------------


def _softmax_residual(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Losses (C,) float32 and softmax minus one-hot (C, V) in the dtype of ``logits``; zero in ignored rows."""
    ignored = labels == ignore_index
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


def _token_chunk_losses(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, chunk: int | None, dtype: torch.dtype
) -> Tensor:
    rows = weight.to(dtype)
    size = _token_chunk(weight.shape[0], hidden.device, chunk)
    losses = []
    for states, targets in zip(hidden.split(size), labels.split(size), strict=True):
        ignored = targets == ignore_index
        logits = (states.to(dtype) @ rows.t()).float()
        target = logits.gather(1, targets.masked_fill(ignored, 0).unsqueeze(1)).squeeze(1)
        losses.append((logits.logsumexp(1) - target).masked_fill(ignored, 0.0))
    return torch.cat(losses)


class _TokenChunks(torch.autograd.Function):
    """Sum of the losses; the gradients of that sum are made in the forward and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        ignore_index: int,
        chunk: int | None,
        dtype: torch.dtype,
    ) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        rows = weight.to(dtype)
        size = _token_chunk(weight.shape[0], hidden.device, chunk)
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        for start in range(0, hidden.shape[0], size):
            states = hidden[start : start + size].to(dtype)
            losses, residual = _softmax_residual(states @ rows.t(), labels[start : start + size], ignore_index)
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
        return grad_hidden, grad_weight, None, None, None, None


# ---- reference and optional backends ---------------------------------------------------------------------------------


def _naive_losses(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, chunk: int | None, dtype: torch.dtype
) -> Tensor:
    logits = F.linear(hidden.to(dtype), weight.to(dtype)).float()
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")


def _naive_total(*arguments: Any) -> Tensor:
    return _naive_losses(*arguments).sum()


def _import_optional(backend: str, module: str, package: str, device: torch.device) -> ModuleType:
    if device.type == "cpu":
        raise ValueError(f"loss backend {backend!r} needs a GPU, not {device.type}: use 'auto'")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"loss backend {backend!r} needs the package {package}: pip install {package}") from error


def _liger_total(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, chunk: int | None, dtype: torch.dtype
) -> Tensor:
    """Liger's kernel with an explicit chunk: by itself it takes next_pow2(N D / V) tokens, mere tens at this V / D."""
    module = _import_optional("liger", "liger_kernel.transformers.functional", "liger-kernel", hidden.device)
    function = module.liger_fused_linear_cross_entropy
    if "chunk_mem_const" not in inspect.signature(function).parameters:
        raise ValueError("loss backend 'liger' needs liger-kernel >= 0.8.5, which lets the chunk be set")
    size = min(_token_chunk(weight.shape[0], hidden.device, chunk), hidden.shape[0])
    # Liger splits N tokens into ceil(V / (constant D)) chunks and rounds their size up to a power of two.
    constant = max(1, math.ceil(weight.shape[0] * size / (weight.shape[1] * hidden.shape[0])))
    total = function(
        hidden.to(dtype),
        weight.to(dtype),
        labels,
        ignore_index=ignore_index,
        reduction="sum",
        accum_dtype=torch.float32,
        chunk_mem_const=constant,
    )
    return total.float()


def _cce_total(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, chunk: int | None, dtype: torch.dtype
) -> Tensor:
    """cut-cross-entropy's kernel without its gradient filter, so that it is exact."""
    module = _import_optional("cce", "cut_cross_entropy", "cut-cross-entropy", hidden.device)
    total = module.linear_cross_entropy(
        hidden.to(dtype), weight.to(dtype), labels, ignore_index=ignore_index, reduction="sum", filter_eps=None
    )
    return total.float()


_Losses = Callable[[Tensor, Tensor, Tensor, int, "int | None", torch.dtype], Tensor]
_LOSSES: dict[str, _Losses] = {
    "vocab": _vocabulary_losses,
    "tokens": _token_chunk_losses,
    "naive": _naive_losses,
}
_TOTALS: dict[str, _Losses] = {
    "vocab": _VocabularyBlocks.apply,
    "tokens": _TokenChunks.apply,
    "naive": _naive_total,
    "liger": _liger_total,
    "cce": _cce_total,
}
