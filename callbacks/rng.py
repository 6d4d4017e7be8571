"""The random state of every generator that training may draw from, as tensors and plain values.

Lightning's checkpoints hold none of it, so dropout after a resume would differ. The form loads with
`weights_only=True`.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist


def capture_rng() -> dict[str, Any]:
    """State of this process's generators: torch (CPU and the current CUDA device), NumPy's global one, Python's."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    inner = dict(numpy_state["state"])
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": {
            "bit_generator": numpy_state["bit_generator"],
            "key": torch.from_numpy(inner["key"].astype(np.int64)),
            "pos": int(inner["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put back what `capture_rng` gave; a CUDA state is left out where there is no CUDA device."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    numpy_state = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": numpy_state["bit_generator"],
            "state": {"key": numpy_state["key"].cpu().numpy().astype(np.uint32), "pos": numpy_state["pos"]},
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        }
    )
    python_state = state["python"]
    random.setstate((python_state["version"], tuple(python_state["words"].tolist()), python_state["gauss"]))


def gather_rng(trainer: pl.Trainer, state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all ranks, by rank. Every rank must call it."""
    if trainer.world_size == 1 or not dist.is_initialized():
        return [state]
    states: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(states, state)
    return states
