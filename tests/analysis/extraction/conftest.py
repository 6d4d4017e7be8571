"""Tiny random models of every architecture."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, object] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim"), 48),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "num_key_value_heads"), 2),
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), 64),
    "head_dim": 8,
    "moe_intermediate_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
    # Small enough to bite on the logits of a random model.
    "final_logit_softcapping": 2.0,
    "logits_scaling": 4.0,
    "logit_scale": 0.25,
}


@pytest.fixture(scope="session")
def tiny_of() -> Callable[..., PreTrainedModel]:
    """`tiny_of("gemma2", **options)`: a random model of a type of transformers, three blocks deep."""

    def make(model_type: str, **options: object) -> PreTrainedModel:
        # Weights so large that caps and scales of logits matter.
        kind = CONFIG_MAPPING[model_type]
        known = {*signature(kind.__init__).parameters, *getattr(kind, "__dataclass_fields__", {})}
        config = kind(**({name: size for name, size in SIZES.items() if name in known} | options))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(0.0, 0.3)
        return model

    return make
