"""XGLM's self-attention through `scaled_dot_product_attention`, which holds no T x T probabilities.

Shapes: B sequences, T tokens, S tokens with the cached ones, H heads, D hidden size
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import XGLMConfig
from transformers.cache_utils import Cache
from transformers.models.xglm import modeling_xglm as xglm

FLOAT32_LENGTH = 128
"""On a CPU attention over at most so many tokens is computed in float32: the bfloat16 kernel's backward takes two to
four times as long there (heads of 32 and 64; about the same from 256 tokens on)."""


class SelfAttention(xglm.XGLMAttention):
    """Causal self-attention through `scaled_dot_product_attention`, or transformers' eager path where asked for."""

    config: XGLMConfig
    dropout: float

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """(B, T, D) to (B, T, D).

        ``attention_mask`` is boolean (B, 1, T, S), True where a query sees a key, or None for plain causal attention.
        """
        if self.config._attn_implementation == "eager":
            return super().forward(hidden_states, key_value_states, past_key_values, attention_mask, **kwargs)
        batch, length, _ = hidden_states.shape
        # (B, T, D) -> (B, H, T, D / H)
        shape = (batch, length, self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, int(self.layer_idx or 0))
        dtype = query.dtype
        widened = query.device.type == "cpu" and dtype.itemsize < 4 and key.shape[2] <= FLOAT32_LENGTH
        if widened:
            query, key, value = query.float(), key.float(), value.float()
        # Autocast would cast back.
        with torch.autocast("cpu", enabled=False) if widened else nullcontext():
            attended = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=attention_mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=attention_mask is None and length > 1,
                scale=self.scaling,
            ).to(dtype)
        return self.out_proj(attended.transpose(1, 2).reshape(batch, length, self.embed_dim)), None
