"""XGLM (Lin et al. 2022, arXiv 2112.10668) at training speed: the transformers class with attention and loss replaced.

`XGLMForCausalLM` is a subclass with the same parameters under the same names, so weights pass both ways. Three things
differ from transformers' class:

- attention runs through `scaled_dot_product_attention` (transformers' XGLM is eager only, and holds T x T probabilities
  for every head and layer), causal without a mask, masked for padding, block-diagonal for packed documents;
- with ``labels`` the loss comes from `train.model.loss`, which never holds the T x V logits;
- positions follow the attention mask: with left padding and no ``position_ids`` transformers' class counts the padding
  too, and every hidden state is silently wrong.

Every projection is called as a module, so forward hooks fire. Shapes: B sequences, T tokens, H heads, D hidden size, V
vocabulary.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import XGLMConfig
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions
from transformers.models.xglm import modeling_xglm as xglm

from train.model.attention import SelfAttention
from train.model.loss import BACKENDS, IGNORE_INDEX, Backend, linear_cross_entropy
from train.model.positions import (
    PADDING_SEGMENT,
    SinusoidalPositions,
    additive_mask,
    positions_from_mask,
    positions_in_segments,
    segment_mask,
)
from train.model.tying import TiedWeight, tie

logger = logging.getLogger(__name__)


def build_config(
    *,
    vocab_size: int = 256_008,
    d_model: int = 512,
    num_layers: int = 24,
    attention_heads: int = 16,
    ffn_dim: int = 4096,
    max_position_embeddings: int = 2048,
    dropout: float = 0.1,
) -> XGLMConfig:
    """An XGLM configuration; the defaults are the study's model of exactly 257,115,136 parameters.

    That is XGLM-564M with the hidden size halved, and with attention dropout 0, without which attention has no fast
    path on the CPU.

    Args:
        vocab_size: rows of the tied embedding; must cover the tokenizer.
        d_model: hidden size, even and a multiple of ``attention_heads``.
        num_layers: number of blocks.
        attention_heads: heads per block.
        ffn_dim: units of the hidden layer of each feed-forward network.
        max_position_embeddings: longest sequence in tokens; sinusoidal, so it costs no parameters.
        dropout: probability on embeddings and on both outputs of a block.

    Raises:
        ValueError: a size that is not positive, sizes that do not divide, a dropout outside [0, 1).
    """
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_layers": num_layers,
        "attention_heads": attention_heads,
        "ffn_dim": ffn_dim,
        "max_position_embeddings": max_position_embeddings,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    if d_model % attention_heads:
        raise ValueError(f"d_model {d_model} must be a multiple of attention_heads {attention_heads}")
    if d_model % 2 or d_model < 4:
        raise ValueError(f"d_model must be even and at least 4 (sine and cosine halves), not {d_model}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), not {dropout}")
    if vocab_size < 3:
        raise ValueError(f"vocab_size must hold <s>, <pad> and </s>, not {vocab_size} tokens")
    return XGLMConfig(**sizes, dropout=dropout, attention_dropout=0.0)


class XGLMForCausalLM(xglm.XGLMForCausalLM):
    """`transformers.XGLMForCausalLM` with fast attention and a loss that holds no logits.

    The class keeps the name that transformers knows, so ``config.json`` of a saved folder loads in plain transformers.

    Args:
        config: see `build_config`.
        loss_backend: formulation of the loss, see `train.model.loss.linear_cross_entropy`.
    """

    _supports_sdpa = True

    def __init__(self, config: XGLMConfig, *, loss_backend: Backend = "auto") -> None:
        if loss_backend not in BACKENDS:
            raise ValueError(f"unknown loss backend {loss_backend!r}: choose one of {', '.join(BACKENDS)}")
        # The parent's constructor would build transformers' own body.
        super(xglm.XGLMForCausalLM, self).__init__(config)
        self.loss_backend = loss_backend
        self.model = XGLMModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items: int | Tensor | None = None,
        segment_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Loss of ``labels``, or where there are none logits.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T) 1 for tokens and 0 for padding on either side, over past and present with a cache.
            position_ids: (B, T) positions from 0; by default counted over unmasked tokens, per segment.
            labels: (B, T) token ids, -100 where there is no target. Shifted here: ``input_ids`` itself is usual.
                The first token of a segment is a target of the last token before it: ``</s>`` ends texts that way.
            num_items: divides the summed loss in place of the number of targets here, see `linear_cross_entropy`.
            segment_ids: (B, T) equal for tokens of one document; tokens attend to their own document only, and its
                positions start at 0. A document is a run of equal ids. Not together with a cache.
            **kwargs: the further arguments of transformers' class (``past_key_values``, ``use_cache``,
                ``inputs_embeds``, ``logits_to_keep``, ``output_hidden_states`` ...).

        Returns:
            transformers' output; ``loss`` is the mean over targets in nats, or sum / ``num_items``.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **kwargs}
        if labels is None:
            return super().forward(**inputs, segment_ids=segment_ids)
        if kwargs.get("use_cache") is None:
            inputs["use_cache"] = kwargs.get("past_key_values") is not None
        return_dict = inputs.pop("return_dict", None)
        inputs.pop("logits_to_keep", None)
        weight = self.lm_head.weight
        if input_ids is not None and self._ties_gradients(weight):
            tied = tie(weight)
            weight = tied.head
            inputs["input_ids"], inputs["inputs_embeds"] = None, self.model.embed_tokens(input_ids, tied)
        outputs = self.model(**inputs, segment_ids=segment_ids)
        hidden = outputs.last_hidden_state  # (B, T, D)
        if labels.shape != hidden.shape[:2]:
            raise ValueError(
                f"labels {tuple(labels.shape)} must have the shape of the tokens {tuple(hidden.shape[:2])}"
            )
        # Shifting the labels rather than the states leaves the states contiguous.
        targets = F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]
        if attention_mask is not None and attention_mask.shape == targets.shape:
            targets = targets.masked_fill(attention_mask == 0, IGNORE_INDEX)  # padding on the left predicts nothing
        loss = linear_cross_entropy(
            hidden.flatten(0, 1),
            weight,
            targets.flatten(),
            num_items=num_items,
            backend=self.loss_backend,
        )
        result = CausalLMOutputWithCrossAttentions(
            loss=loss,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result.to_tuple() if return_dict is False else result

    def _ties_gradients(self, weight: Tensor) -> bool:
        """Whether embedding and head share one weight whose gradient `train.model.tying` can make in one piece."""
        return (
            weight is self.model.embed_tokens.weight
            and weight.device.type == "cpu"
            and weight.requires_grad
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        )


class XGLMModel(xglm.XGLMModel):
    """The body, from token ids to the states before the head, with fast attention and right positions."""

    _supports_sdpa = True

    def __init__(self, config: XGLMConfig) -> None:
        if config.add_cross_attention:
            raise ValueError("add_cross_attention is not supported: this model is a decoder without an encoder")
        if config.attention_dropout:
            logger.warning(
                "attention_dropout %g leaves the fast attention path on the CPU; 0 trains faster",
                config.attention_dropout,
            )
        super().__init__(config)
        self.embed_positions = SinusoidalPositions(config.max_position_embeddings, config.d_model, config.pad_token_id)
        # Same parameters, same initialisation, another forward: nothing is built twice.
        embedding: Any = self.embed_tokens
        embedding.__class__ = ScaledEmbedding
        for layer in self.layers:
            attention: Any = layer.self_attn
            attention.__class__ = SelfAttention
            attention.config = config

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Arguments as `XGLMForCausalLM.forward`; returns transformers' output with ``last_hidden_state`` (B, T, D)."""
        if kwargs.get("encoder_hidden_states") is not None:
            raise ValueError("encoder_hidden_states is not supported: this model is a decoder without an encoder")
        if self.config._attn_implementation != "eager" and kwargs.get(
            "output_attentions", self.config.output_attentions
        ):
            raise ValueError(
                "fast attention keeps no weights: build the model with attn_implementation='eager' to output_attentions"
            )
        if segment_ids is not None:
            if kwargs.get("past_key_values") is not None:
                raise ValueError(
                    "segment_ids cannot be combined with past_key_values: a packed block has no continuation"
                )
            if attention_mask is not None:
                segment_ids = segment_ids.masked_fill(attention_mask == 0, PADDING_SEGMENT)
            if position_ids is None:
                position_ids = positions_in_segments(segment_ids)
            attention_mask = segment_mask(segment_ids)
            if self.config._attn_implementation == "eager":
                attention_mask = additive_mask(attention_mask, self.embed_tokens.weight.dtype)
        elif attention_mask is not None and attention_mask.dim() == 2 and position_ids is None:
            tokens = input_ids if input_ids is not None else kwargs["inputs_embeds"]
            position_ids = positions_from_mask(attention_mask, tokens.shape[1], kwargs.get("past_key_values"))
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)


class ScaledEmbedding(xglm.XGLMScaledWordEmbedding):
    """XGLM's embedding, times the square root of D, that can look its rows up in a tied weight."""

    def forward(self, input_ids: Tensor, tied: TiedWeight | None = None) -> Tensor:
        """(B, T) to (B, T, D)."""
        if tied is None:
            return super().forward(input_ids)
        return tied.look_up(input_ids, self.padding_idx) * (self.embed_scale or 1.0)
