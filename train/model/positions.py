"""Where tokens stand and what they see: XGLM's sinusoidal table, positions and masks for padded and packed batches.

transformers' XGLM counts positions from the first column, padding or not, and has no notion of documents packed into
one block. Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.models.xglm import modeling_xglm as xglm

PADDING_SEGMENT = -1
"""Segment of padding tokens: they see each other and nothing else, so that no row of the mask is empty."""


class SinusoidalPositions(xglm.XGLMSinusoidalPositionalEmbedding):
    """XGLM's sinusoidal table, kept in float32 whatever the dtype of the model.

    The table is not part of a checkpoint. Cast along with the model to bfloat16 and back it would stay off by 2e-3 for
    good; here only what is looked up takes the dtype of the model.
    """

    def __init__(self, num_positions: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__(num_positions, embedding_dim, padding_idx)
        self.output_dtype = torch.get_default_dtype()

    def make_weights(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        table = self.get_embedding(num_embeddings, embedding_dim, padding_idx)
        device = self.weights.device if hasattr(self, "weights") else table.device
        self.weights = nn.Buffer(table.to(device), persistent=False)

    @staticmethod
    def get_embedding(num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> Tensor:
        """(num_embeddings, embedding_dim) float32, computed as transformers does in a float32 model."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            return xglm.XGLMSinusoidalPositionalEmbedding.get_embedding(num_embeddings, embedding_dim, padding_idx)
        finally:
            torch.set_default_dtype(default)

    def forward(self, position_ids: Tensor | None = None, past_key_values_length: int = 0) -> Tensor:
        return super().forward(position_ids, past_key_values_length).to(self.output_dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> SinusoidalPositions:
        table = self.weights
        super()._apply(fn, recurse)
        self.output_dtype = self.weights.dtype
        if self.weights.dtype != table.dtype:
            self.weights = nn.Buffer(table.to(self.weights.device), persistent=False)
        return self


def positions_from_mask(attention_mask: Tensor, length: int, past_key_values: Cache | None = None) -> Tensor | None:
    """Positions (B, T) of the last ``length`` tokens, counted over unmasked tokens; padding gets 0 or the last count.

    None if the mask does not cover the past, when transformers' own count is as good.
    """
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    if attention_mask.shape[1] != past + length:
        return None
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -length:]


def positions_in_segments(segment_ids: Tensor) -> Tensor:
    """Positions (B, T) that start at 0 with every run of equal segment ids."""
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    starts = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0))
    return index - (index * starts).cummax(1).values


def segment_mask(segment_ids: Tensor) -> Tensor:
    """Boolean mask (B, 1, T, T): a token sees itself and the earlier tokens of its run of equal segment ids."""
    runs = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0)).cumsum(1)
    same = runs[:, :, None] == runs[:, None, :]
    return same.tril().unsqueeze(1)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The float mask of transformers' eager attention: 0 where ``visible``, the lowest number elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)
