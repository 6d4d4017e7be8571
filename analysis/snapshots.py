"""One face for a model: a causal LM frozen at one training step.

The live trainer, a run folder on disk and the revisions of a hub repository are ways to get a `Snapshot`; no measure
knows which. The sources that open one are in `analysis.checkpoints`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope.records import Clone

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, order=True)
class SnapshotId:
    """Which model at which point of its training."""

    run: str
    step: int
    """Optimizer steps taken; 0 is the untrained network."""
    tokens: int | None = None
    """Tokens seen: the axis on which different models compare. None if unknown."""


def step_name(step: int) -> str:
    """Name of what belongs to one step, in every folder: 16 -> `step_00000016`, so that names sort like steps."""
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a name that `step_name` made, or None for other names."""
    found = re.fullmatch(r"step_(\d+)", name)
    return None if found is None else int(found[1])


@dataclass(frozen=True)
class Snapshot:
    """A model ready to be measured: in eval mode, uncompiled, not wrapped by a parallel strategy."""

    id: SnapshotId
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    replicas: tuple[PreTrainedModel, ...] = ()
    """Copies of the model on further devices, which take a share of the texts; see `analysis.extraction.replicas`."""
    clones: Mapping[str, Clone] = field(default_factory=dict)
    """Cloned languages that the model was trained on, by name."""
    shared: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)
    """What one analysis computed from this snapshot and another may use again; gone with the snapshot."""

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        """The model and its copies."""
        return self.model, *self.replicas

    @cached_property
    def tokenizer_hash(self) -> str:
        return hash_tokenizer(self.tokenizer)

    @property
    def num_parameters(self) -> int:
        """Parameters without embeddings: what runs of one size have in common, whatever their vocabulary."""
        vocabulary = self.model.config.get_text_config().vocab_size
        return sum(value.numel() for value in self.model.parameters() if value.shape[:1] != (vocabulary,))


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the fast tokenizer's own serialisation (vocabulary, merges, rules).

    Truncation and padding are left out: they are traces of the last call, not properties of the tokenizer.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


CLONES_FILE = "clones.json"
"""Beside the tokenizer of a snapshot: {"en2": {"of": "en", "shift": 8192}}; not there without clones."""


def read_clones(folder: Path, vocab_size: int) -> dict[str, Clone]:
    """Cloned languages of the snapshot in `folder`.

    Args:
        vocab_size: ids that the model knows.

    Raises:
        ValueError: not such a file, or one that shifts ids out of the model's vocabulary.
    """
    path = folder / CLONES_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        clones = {name: Clone(of=str(entry["of"]), shift=int(entry["shift"])) for name, entry in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a file of cloned languages ({error!r})") from None
    for name, clone in clones.items():
        if not 0 < clone.shift < vocab_size:
            raise ValueError(f"{path}: {name} is shifted by {clone.shift}, but the model knows {vocab_size} tokens")
    return clones
