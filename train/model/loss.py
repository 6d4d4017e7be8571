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
2024, arXiv 2410.10989) and cut-cross-entropy (Wijmans et al. 2024, arXiv 2411.09009) where these are installed. Shapes:
N tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from train.model.loss_tokens import IGNORE_INDEX, TokenChunks, token_chunk, token_chunk_losses
from train.model.loss_vocab import VocabularyBlocks, vocabulary_losses

Backend = Literal["auto", "vocab", "tokens", "naive", "liger", "cce"]
BACKENDS: tuple[str, ...] = get_args(Backend)


@torch.compiler.disable
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    num_items: int | Tensor | None = None,
    backend: Backend = "auto",
    chunk: int | None = None,
) -> Tensor:
    """Cross-entropy in nats of ``labels`` under the logits ``hidden @ weight.T``, differentiable in both factors.

    Products run in the autocast dtype where autocast is on, else in the dtype of ``hidden``; log-sum-exp and sums are
    float32. Labels are taken as they are: shifting them by one is the caller's business.

    Args:
        hidden: (N, D) states before the head.
        weight: (V, D) head weight, row = token.
        labels: (N,) token ids, or `IGNORE_INDEX` where there is no target.
        num_items: divides the sum; None is the number of targets. The count of targets over all micro-batches and ranks
            of one optimizer step, say, so that accumulation and DDP give the loss of the whole batch.
        backend: ``"auto"`` is ``vocab`` for reduced precision on the CPU, ``tokens`` otherwise.
        chunk: rows of the weight per block (``vocab``) or tokens per chunk (``tokens``, ``liger``).

    Returns:
        Float32 scalar; 0 with zero gradients when no label is a target.

    Raises:
        ValueError: shapes, labels or options that do not fit, or a backend that cannot run here.
    """
    _check_inputs(hidden, weight, labels, chunk)
    dtype = _compute_dtype(hidden)
    name = choose_backend(backend, hidden.device, dtype)
    if chunk is not None and name in ("naive", "cce"):
        raise ValueError(f"backend {name!r} has no chunks: leave chunk unset")

    with torch.autocast(hidden.device.type, enabled=False):
        if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)) and name in _LOSSES:
            total = _LOSSES[name](hidden, weight, labels, chunk, dtype).sum()
        else:
            total = _TOTALS[name](hidden, weight, labels, chunk, dtype)
    if num_items is None:
        num_items = (labels != IGNORE_INDEX).sum()
    return total / (num_items.clamp(min=1) if isinstance(num_items, Tensor) else max(num_items, 1))


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


def _check_inputs(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int | None) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be (N, D) and (V, D)")
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} must have one entry per row of hidden {tuple(hidden.shape)}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be positive, not {chunk}")
    legal = ((labels >= 0) & (labels < weight.shape[0])) | (labels == IGNORE_INDEX)
    if labels.device.type != "cpu":
        torch._assert_async(legal.all(), "a label lies outside the vocabulary")  # no wait for the device
    elif not legal.all():
        raise ValueError(f"label {int(labels[~legal][0])} lies outside the vocabulary of {weight.shape[0]} tokens")


def _naive_losses(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int | None, dtype: torch.dtype) -> Tensor:
    logits = F.linear(hidden.to(dtype), weight.to(dtype)).float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")


def _naive_total(*arguments: Any) -> Tensor:
    return _naive_losses(*arguments).sum()


def _import_optional(backend: str, module: str, package: str, device: torch.device) -> ModuleType:
    if device.type == "cpu":
        raise ValueError(f"loss backend {backend!r} needs a GPU, not {device.type}: use 'auto'")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"loss backend {backend!r} needs the package {package}: pip install {package}") from error


def _liger_total(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int | None, dtype: torch.dtype) -> Tensor:
    """Liger's kernel with an explicit chunk: by itself it takes next_pow2(N D / V) tokens, mere tens at this V / D."""
    module = _import_optional("liger", "liger_kernel.transformers.functional", "liger-kernel", hidden.device)
    function = module.liger_fused_linear_cross_entropy
    if "chunk_mem_const" not in inspect.signature(function).parameters:
        raise ValueError("loss backend 'liger' needs liger-kernel >= 0.8.5, which lets the chunk be set")
    size = min(token_chunk(weight.shape[0], hidden.device, chunk), hidden.shape[0])
    # Liger splits N tokens into ceil(V / (constant D)) chunks and rounds their size up to a power of two.
    constant = max(1, math.ceil(weight.shape[0] * size / (weight.shape[1] * hidden.shape[0])))
    total = function(
        hidden.to(dtype),
        weight.to(dtype),
        labels,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        accum_dtype=torch.float32,
        chunk_mem_const=constant,
    )
    return total.float()


def _cce_total(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int | None, dtype: torch.dtype) -> Tensor:
    """cut-cross-entropy's kernel without its gradient filter, so that it is exact."""
    module = _import_optional("cce", "cut_cross_entropy", "cut-cross-entropy", hidden.device)
    total = module.linear_cross_entropy(
        hidden.to(dtype), weight.to(dtype), labels, ignore_index=IGNORE_INDEX, reduction="sum", filter_eps=None
    )
    return total.float()


_Losses = Callable[[Tensor, Tensor, Tensor, "int | None", torch.dtype], Tensor]
_LOSSES: dict[str, _Losses] = {
    "vocab": vocabulary_losses,
    "tokens": token_chunk_losses,
    "naive": _naive_losses,
}
_TOTALS: dict[str, _Losses] = {
    "vocab": VocabularyBlocks.apply,
    "tokens": TokenChunks.apply,
    "naive": _naive_total,
    "liger": _liger_total,
    "cce": _cce_total,
}
