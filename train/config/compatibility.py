"""Do the parts of a run fit together? Everything that can be refused before the first step, in one place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from transformers import XGLMConfig

from babelscope.errors import one_line
from train.config.options import PRECISIONS, WHY_WHOLE
from train.model.xglm import XGLMForCausalLM
from train.optim import build_optimizer

RESUMABLE = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step")
"""What a checkpoint must hold for a training to go on from it."""


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuse what would break the training step or the analyses.

    Raises:
        ValueError: a strategy other than one device or DDP, or one callback listed twice.
    """
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise ValueError(f"trainer.strategy is {type(trainer.strategy).__name__}: {WHY_WHOLE}")
    if trainer.precision not in PRECISIONS:
        raise ValueError(f"trainer.precision is {trainer.precision}; use bf16-mixed or 32-true")
    if trainer.gradient_clip_algorithm not in (None, "norm"):
        raise ValueError(
            f"trainer.gradient_clip_algorithm is {str(trainer.gradient_clip_algorithm)!r}; only norm is supported"
        )
    seen: dict[str, str] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        if callback.state_key in seen:
            raise ValueError(
                f"trainer.callbacks: {name} stands there twice and would do everything twice; take one out"
            )
        seen[callback.state_key] = name


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


def check_checkpoint(path: str, model: Any, data: Any = None) -> None:
    """Refuse, before anything is written, a file from which this model cannot go on.

    Args:
        model: the `train.module.LanguageModelingModule`.
        data: data module of a training that is to go on; None where only the weights are of interest.

    Raises:
        ValueError: not a checkpoint, weights alone, the weights of another model, the state of another optimizer, or
            steps of another size.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zip, pickle and torch each have their own for a file that is something else
        reason = re.split(r"[.:\n]", str(error).strip())[0]
        raise ValueError(
            f"--resume {path}: torn, or not a checkpoint of a training ({type(error).__name__}: {reason})"
        ) from None
    missing = [key for key in RESUMABLE if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(
            f"--resume {path}: not a checkpoint of a training, it lacks {', '.join(missing)}; to start from weights "
            "alone give a Hugging Face folder as model.initial_weights"
        )
    there = {name: tuple(tensor.shape) for name, tensor in content["state_dict"].items()}
    here = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"--resume {path}: holds another model: {name} has shape {there.get(name)} there and {here.get(name)} "
                "in the run"
            )
    if data is None:
        return
    optimizer = build_optimizer(model.model, model.optimizer_options)
    stored, given = _describe_groups(content["optimizer_states"][0]), _describe_groups(optimizer.state_dict())
    if stored != given:
        raise ValueError(
            f"--resume {path}: holds the state of another optimizer ({stored} parameters; the run has {given}); "
            "restore model.optimizer.name and decay_embeddings, or start a new run with a snapshot as "
            "model.initial_weights"
        )
    if (state := content.get(type(data).__qualname__)) is not None:
        try:
            data.check_tokens_per_step(state)
        except ValueError as error:
            raise ValueError(f"--resume {path}: {error}") from None


def _describe_groups(state: dict[str, Any]) -> str:
    """Kind and number of parameters of every group: `AdamW of 8, AdamW of 22`. Muon alone has one momentum."""
    groups = state["param_groups"]
    return ", ".join(f"{'Muon' if 'momentum' in group else 'AdamW'} of {len(group['params'])}" for group in groups)


def read_initial_weights(folder: str, config: XGLMConfig) -> dict[str, Tensor]:
    """Weights of a Hugging Face folder whose sizes are those of `config`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: other sizes, or weights that are missing, torn, pickled or not finite.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"model.initial_weights: {folder} has no config.json; give a Hugging Face folder")
    try:
        given = XGLMConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever is wrong with a file that somebody else wrote
        raise ValueError(f"model.initial_weights: {folder}/config.json: {one_line(error, 200)}") from None
    for key in ("vocab_size", "d_model", "num_layers", "attention_heads", "ffn_dim"):
        there, here = getattr(given, key, None), getattr(config, key)
        if there != here:
            raise ValueError(f"model.initial_weights: {folder} has {key} {there} but the run has {here}")
    try:
        loaded: Any = XGLMForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        raise ValueError(
            f"model.initial_weights: {folder}: no whole model.safetensors of this architecture ({one_line(error, 200)})"
        ) from None
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"model.initial_weights: {folder} lacks {len(missing)} weights, such as {missing[0]}")
    state = model.state_dict()
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"model.initial_weights: {folder}: {name} holds NaN or infinity")
    return state
