"""Is every checkpoint what its name says? Hashes, duplicates, gaps and drift, before anything is read from a curve.

Published suites hold revisions with the weights of another step (BLOOM-560m: 500k = 10k; 86 of 154 Pythia revisions at
one time) and broken files. `analysis.checkpoints.sweep` hashes every checkpoint that it opens:

    <results>/identity/step_00001000.json    one record per checkpoint, written by the task that measured it
    <results>/identity.json                  all records, duplicates, gaps and drift, written at the end of a sweep
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.snapshots import step_name
from babelscope.files import write_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

VOLATILE = (
    *("_name_or_path", "_model_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"),
    *("use_cache", "auto_map", "id2label", "label2id", "quantization_config"),
)
"""Entries of a config that do not change the network."""

SUMMARY = "identity.json"


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What one checkpoint turned out to be."""

    step: int
    tokens: int | None
    name: str
    marks: Mapping[str, str]
    """What told the content cheaply when the record was made; another mark makes the record stale."""
    weights_sha256: str
    """`hash_tensors` over the stored weights."""
    tokenizer_sha256: str = ""
    config: Mapping[str, object] = field(default_factory=dict)
    """The model's config without `VOLATILE` entries."""
    origin: str = ""
    """Folder or repository that it came from; empty in records made before it was kept."""


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over (name, dtype, shape, bytes) of each tensor, combined in the order of the names.

    The container does not enter: the same tensors give the same hash from one file or several shards, safetensors or
    pickled. One tensor is in memory at a time.
    """
    import torch

    digests = {}
    for name, tensor in tensors:
        digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
        digests[name] = digest.digest()
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()


def describe_config(model: PreTrainedModel) -> dict[str, object]:
    """The entries of the model's config that make the network, as JSON values."""
    content = json.loads(model.config.to_json_string(use_diff=False))
    return {key: value for key, value in content.items() if key not in VOLATILE}


def record_path(results: Path, step: int) -> Path:
    return results / "identity" / f"{step_name(step)}.json"


def read_record(results: Path, step: int) -> CheckpointRecord | None:
    """The record of a step, or None if there is no readable one."""
    try:
        return CheckpointRecord(**json.loads(record_path(results, step).read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def write_record(results: Path, identity: CheckpointRecord) -> None:
    write_text(record_path(results, identity.step), json.dumps(asdict(identity), indent=1, sort_keys=True))


def find_duplicates(records: Sequence[CheckpointRecord]) -> list[tuple[int, ...]]:
    """Groups of steps with the same weights, ascending."""
    groups: dict[str, list[int]] = {}
    for record in sorted(records, key=lambda record: record.step):
        groups.setdefault(record.weights_sha256, []).append(record.step)
    return [tuple(steps) for steps in groups.values() if len(steps) > 1]


def find_gaps(steps: Sequence[int]) -> list[int]:
    """Steps that the suite's own rhythm lets expect and that are not there.

    The rhythm is the most frequent distance between neighbours (at least twice); its multiples between two neighbours
    are missing. Below the first multiple that is present nothing is expected. Where most steps double (powers of two,
    and the last step) or more are missing than present there is no rhythm.
    """
    ordered = sorted(set(steps))
    distances = Counter(after - before for before, after in pairwise(ordered))
    doubled = sum(after == 2 * before for before, after in pairwise(ordered))
    if not distances or 2 * doubled > distances.total():
        return []
    rhythm, times = max(distances.items(), key=lambda item: (item[1], item[0]))
    if times < 2:
        return []
    on_beat = [step for step in ordered if step % rhythm == 0 and step > 0]
    if not on_beat:
        return []
    missing = [step for step in range(on_beat[0], on_beat[-1], rhythm) if step not in ordered]
    return missing if len(missing) < len(on_beat) else []


def find_drift(records: Sequence[CheckpointRecord]) -> dict[int, list[str]]:
    """Step -> what differs from the value that most checkpoints have: config entries or the tokenizer."""
    drift: dict[int, list[str]] = {}
    keys = sorted({key for record in records for key in record.config})
    values = {
        key: [json.dumps(record.config.get(key, "(absent)"), sort_keys=True) for record in records] for key in keys
    }
    values["tokenizer"] = [record.tokenizer_sha256 for record in records]
    for key, column in values.items():
        usual = Counter(column).most_common(1)[0][0] if column else ""
        for record, value in zip(records, column, strict=True):
            if value != usual:
                told = "another tokenizer" if key == "tokenizer" else f"{key} {value} (usually {usual})"
                drift.setdefault(record.step, []).append(told)
    return drift


def write_summary(results: Path, run: str, steps: Sequence[int], failed: Mapping[int, str]) -> list[str]:
    """Merge the records of `steps` into identity.json; returns one line for every finding.

    `failed` names checkpoints that could not be opened, which are gaps of their own kind.
    """
    records = [record for step in sorted(steps) if (record := read_record(results, step)) is not None]
    names = {record.step: record.name for record in records}
    duplicates, gaps, drift = find_duplicates(records), find_gaps(steps), find_drift(records)
    lines = []
    for first, *others in duplicates:
        for other in others:
            lines.append(f"{run}: step {other} ({names[other]}) has the weights of step {first} ({names[first]})")
    if gaps:
        lines.append(f"{run}: no checkpoint for step {', '.join(map(str, gaps))}")
    lines.extend(
        f"{run}: step {step} ({names[step]}) differs: {'; '.join(what)}" for step, what in sorted(drift.items())
    )
    content = {
        "run": run,
        "checkpoints": [asdict(record) for record in records],
        "duplicates": duplicates,
        "gaps": gaps,
        "drift": drift,
        "failed": dict(failed),
    }
    write_text(results / SUMMARY, json.dumps(content, indent=1, sort_keys=True))
    return lines
