"""Parameters and floating-point operations of an XGLM, and what the device could do.

Counting convention of model FLOPs utilisation (MFU; PaLM, Chowdhery et al. 2022, appendix B): two operations per
multiply-add; matrix products only, so no softmax, normalisation, GELU or embedding look-up; the backward costs twice
the forward; work repeated to save memory (activation checkpointing, logits computed twice) does not count. Unlike in
PaLM's formula, attention counts as causal, i.e. half of the T x T scores. For the 257M model at 1,024 tokens a forward
takes 252 M in linear layers, 25 M in attention and 262 M in the head, and a training step three times their sum: 1.617
GFLOP per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import XGLMConfig

BACKWARD_TO_FORWARD = 2
"""Each product of the forward has two of the same size in the backward: one per factor."""

TFLOPS = 1e12
PEAK_BFLOAT16: tuple[tuple[str, float], ...] = (
    # NVIDIA data sheets, dense (their sparse figures halved); a name is matched by the first entry that it contains,
    # so the special comes before the general.
    ("GB200", 2500 * TFLOPS),
    ("B200", 2250 * TFLOPS),
    ("GH200", 989.4 * TFLOPS),
    ("H200 NVL", 835.5 * TFLOPS),
    ("H200", 989.4 * TFLOPS),
    ("H100 PCIe", 756 * TFLOPS),
    ("H100 NVL", 835.5 * TFLOPS),
    ("H100", 989.4 * TFLOPS),
    ("H800 PCIe", 756 * TFLOPS),
    ("H800", 989.4 * TFLOPS),
    ("H20", 148 * TFLOPS),
    ("A100", 312 * TFLOPS),
    ("A800", 312 * TFLOPS),
    ("A30", 165 * TFLOPS),
    ("A40", 149.7 * TFLOPS),
    ("A10G", 70 * TFLOPS),
    ("A10", 125 * TFLOPS),
    ("RTX A6000", 154.8 * TFLOPS),
    ("L40S", 362 * TFLOPS),
    ("L40", 181 * TFLOPS),
    ("L4", 121 * TFLOPS),
    ("RTX 4090", 165.2 * TFLOPS),
    ("RTX 3090", 71 * TFLOPS),
    # AMD data sheet, dense.
    ("MI300X", 1307.4 * TFLOPS),
)
"""Peak dense bfloat16 and float16 rate with float32 accumulation, per device as torch names it."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Trainable parameters: the tied embedding, everything else, and their sum."""

    embedding: int
    body: int

    @property
    def total(self) -> int:
        return self.embedding + self.body


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """Operations of one forward, per token."""

    linear: int
    """q, k, v and output projections and both feed-forward layers of all blocks."""
    attention: int
    """Scores and weighted values, causal."""
    head: int
    """Logits over the vocabulary."""

    @property
    def total(self) -> int:
        return self.linear + self.attention + self.head


def count_parameters(config: XGLMConfig) -> ParameterCount:
    """Parameters of the model that ``config`` describes; positions are sinusoidal and cost none."""
    d, ffn = config.d_model, config.ffn_dim
    attention = 4 * (d * d + d)
    feed_forward = d * ffn + ffn + ffn * d + d
    norms = 2 * 2 * d
    embeddings = config.vocab_size * d * (1 if config.tie_word_embeddings else 2)
    return ParameterCount(embeddings, config.num_layers * (attention + feed_forward + norms) + 2 * d)


def block_matrix_count(config: XGLMConfig) -> int:
    """Parameters in the matrices of the blocks, which Muon moves."""
    d, ffn = config.d_model, config.ffn_dim
    return config.num_layers * (4 * d * d + 2 * d * ffn)


def muon_flops(config: XGLMConfig, newton_schulz_steps: int = 5) -> int:
    """Operations of orthogonalising the momentum of all matrices once, by every optimizer step and on every device.

    A step of Newton-Schulz on (m, n) with m <= n is X X^T, its square, and their product with X: 4 m m n + 2 m m m.
    """
    d, ffn = config.d_model, config.ffn_dim
    m, n = min(d, ffn), max(d, ffn)
    matrices = 4 * (4 * d**3 + 2 * d**3) + 2 * (4 * m * m * n + 2 * m**3)
    return config.num_layers * newton_schulz_steps * matrices


def forward_flops(config: XGLMConfig, sequence_length: int) -> ForwardFlops:
    """Operations per token of a forward over sequences of ``sequence_length`` tokens."""
    if sequence_length < 1:
        raise ValueError(f"sequence_length must be at least 1, not {sequence_length}")
    d = config.d_model
    return ForwardFlops(
        linear=2 * block_matrix_count(config),
        attention=2 * config.num_layers * d * sequence_length,
        head=2 * config.vocab_size * d,
    )


def flops_per_token(config: XGLMConfig, sequence_length: int) -> int:
    """Operations per token of a training step, forward and backward: the numerator of MFU."""
    return (1 + BACKWARD_TO_FORWARD) * forward_flops(config, sequence_length).total


def peak_flops(device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> float | None:
    """Peak operations per second of ``device`` in ``dtype``; None where it is not known, so that no MFU is made up.

    Only bfloat16 and float16 are listed: what a float32 product really runs in depends on global settings of torch.
    """
    device = torch.device(device)
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or not torch.cuda.is_available():
        return None
    return peak_flops_of(torch.cuda.get_device_name(device))


def peak_flops_of(device_name: str) -> float | None:
    """Entry of `PEAK_BFLOAT16` for a device name such as "NVIDIA H100 80GB HBM3", or None."""
    words = f" {device_name.replace('-', ' ')} "
    if " Laptop " in words:  # shares the name of a card with another chip and power limit
        return None
    return next((peak for name, peak in PEAK_BFLOAT16 if f" {name} " in words), None)
