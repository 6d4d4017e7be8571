"""Do the parts of a run fit together? Everything that can be refused before the first step, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from transformers import XGLMConfig

from train.model.xglm import XGLMForCausalLM

SHARDED_STRATEGIES = ("fsdp", "deepspeed", "modelparallel")
WHY_WHOLE = "snapshots and live analyses need the whole model on every rank, and it fits one device; use ddp or auto"


def refuse_sharded(strategy: Any) -> None:
    """Refuse the name or configuration of a strategy that spreads one model over devices, before Lightning starts it.

    Raises:
        ValueError: FSDP, DeepSpeed, tensor parallelism.
    """
    name = strategy if isinstance(strategy, str) else str(getattr(strategy, "class_path", type(strategy).__name__))
    if any(word in name.lower().replace("_", "") for word in SHARDED_STRATEGIES):
        raise ValueError(f"trainer.strategy is {name}: {WHY_WHOLE}")


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuse what would break the training step or the analyses.

    Raises:
        ValueError: a strategy other than one device or DDP, float16 with loss scaling, clipping other than by norm.
    """
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise ValueError(f"trainer.strategy is {type(trainer.strategy).__name__}: {WHY_WHOLE}")
    if trainer.precision == "16-mixed":
        raise ValueError("trainer.precision is 16-mixed, whose loss scaling hides skipped steps; use bf16-mixed")
    if trainer.gradient_clip_algorithm not in (None, "norm"):
        raise ValueError(
            f"trainer.gradient_clip_algorithm is {str(trainer.gradient_clip_algorithm)!r}; only norm is supported"
        )


def check_data(data: Any, config: XGLMConfig) -> None:
    """Refuse a tokenizer or block length that the model has no room for.

    Raises:
        ValueError: sizes differ, or blocks are longer than the context.
    """
    if data.vocab_size != config.vocab_size:
        clones = len(getattr(data, "clone_names", ()))
        given = f"the tokenizer has {data.vocab_size // (1 + clones):,} tokens"
        if clones:
            given += f" (with {', '.join(data.clone_names)}: {data.vocab_size:,})"
        raise ValueError(
            f"{given} but model.vocab_size is {config.vocab_size:,}; "
            f"set model.vocab_size to {data.vocab_size} or give another tokenizer"
        )
    if data.block_size > config.max_position_embeddings:
        raise ValueError(
            f"data.block_size is {data.block_size} but model.max_position_embeddings is "
            f"{config.max_position_embeddings}; raise the latter or shorten the blocks"
        )


def read_initial_weights(folder: str, config: XGLMConfig) -> dict[str, Tensor]:
    """Weights of a Hugging Face folder whose sizes are those of `config`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: other sizes.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"model.initial_weights: {folder} has no config.json; give a Hugging Face folder")
    given = XGLMForCausalLM.from_pretrained(folder, local_files_only=True)
    for key in ("vocab_size", "d_model", "num_layers", "attention_heads", "ffn_dim"):
        there, here = getattr(given.config, key), getattr(config, key)
        if there != here:
            raise ValueError(f"model.initial_weights: {folder} has {key} {there} but the run has {here}")
    return given.state_dict()
