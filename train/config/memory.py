"""Rough memory of a training step on one device, from sizes alone: what `describe` shows and `fit` refuses."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import XGLMConfig

from train.flops import block_matrix_count, count_parameters
from train.model.attention import FLOAT32_LENGTH
from train.model.loss_tokens import CPU_CHUNK_LOGITS, CUDA_CHUNK_LOGITS, MAX_TOKEN_CHUNK
from train.model.loss_vocab import VOCABULARY_BLOCK


@dataclass(frozen=True)
class Memory:
    """Bytes on one device during a training step."""

    weights: float
    """float32 masters, and their bf16 copies under autocast."""
    gradients: float
    optimizer: float
    """Two moments a parameter in float32 (AdamW), or one (Muon)."""
    activations: float
    """Kept for the backward pass of one micro-batch."""
    logits: float
    """The largest block of logits, with its gradient."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def activation_bytes(config: XGLMConfig, *, bf16: bool, checkpointing: bool, float32_attention: bool = False) -> int:
    """Bytes per token that the backward pass needs, counted over the tensors that autograd saves in a block.

    float32: residual stream and LayerNorm output twice each, q, k, v and the attended values (8 d), the hidden layer
    before and after GELU (2 ffn). Under bf16 autocast the residual stream stays float32 (2 d), all else is bf16 (8 d +
    2 ffn); where attention is float32 all the same, its four tensors are, and a bf16 copy of the attended values comes
    on top. To both come LayerNorm statistics and the log-sum-exp of each head. With checkpointing every block keeps its
    input alone, and one block at a time the rest. Dropout masks count as large as what they mask (less on a GPU).
    """
    d, ffn = config.d_model, config.ffn_dim
    block = 4 * 2 * d + 2 * (8 * d + 2 * ffn) if bf16 else 4 * (8 * d + 2 * ffn)
    if bf16 and float32_attention:
        block += 4 * 2 * d + 2 * d
    block += 16 + 4 * config.attention_heads
    ends = 12 * d + 16
    if config.dropout:
        block += 2 * d * (2 if bf16 else 4)
        ends += 4 * d
    if checkpointing:
        return config.num_layers * 4 * d + block + ends
    return config.num_layers * block + ends


def optimizer_bytes(config: XGLMConfig, name: str) -> int:
    """Bytes of the state of the optimizer `adamw` or `muon` (see `train.optim`)."""
    return 8 * count_parameters(config).total - (4 * block_matrix_count(config) if name == "muon" else 0)


def estimate_memory(
    config: XGLMConfig,
    *,
    micro_batch_tokens: int,
    block_size: int,
    bf16: bool,
    checkpointing: bool,
    on_gpu: bool,
    optimizer: str = "adamw",
) -> Memory:
    """Rough memory of one device; workspaces of kernels, the CUDA context (0.5 GB) and DDP's buckets come on top."""
    parameters = count_parameters(config)
    short = not on_gpu and block_size <= FLOAT32_LENGTH
    kept = activation_bytes(config, bf16=bf16, checkpointing=checkpointing, float32_attention=short)
    if on_gpu or not bf16:
        chunk = min(micro_batch_tokens, MAX_TOKEN_CHUNK) * config.vocab_size
        logits = min(chunk, CUDA_CHUNK_LOGITS if on_gpu else CPU_CHUNK_LOGITS) * (2 if bf16 else 4)
    else:
        logits = min(VOCABULARY_BLOCK, config.vocab_size) * micro_batch_tokens * 4
    return Memory(
        weights=(6 if bf16 else 4) * parameters.total,
        gradients=4 * parameters.total,
        optimizer=optimizer_bytes(config, optimizer),
        activations=micro_batch_tokens * kept,
        logits=2 * logits,
    )
