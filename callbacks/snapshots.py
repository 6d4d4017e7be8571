"""Snapshots of the model on a schedule, as Hugging Face folders that load anywhere, and where a run keeps its files.

    runs/<name>/                         trainer.default_root_dir; its last part is the run's name
      snapshots/step_00000016/
        model.safetensors config.json generation_config.json and the tokenizer's files
        clones.json                          of which language in which token ids a cloned one is, if there are any
        snapshot.json                    run, step, tokens, data_fingerprint, weights_sha256, versions: the done marker
      checkpoints/step_00000016.ckpt     all that training needs to go on, see `callbacks.resume`
      checkpoints/step_00000016.json     its size and SHA-256, written after it

A snapshot is what analyses read and what the study keeps, so no rule ever deletes one; the resume checkpoint is bigger,
replaced often, and useless to anybody but the trainer. `weights_sha256` is that of the file `model.safetensors`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from analysis.snapshots import CLONES_FILE, step_name
from babelscope.files import file_sha256, new_folder, remove_leftovers, write_json
from callbacks.schedule import Schedule, required
from callbacks.step import StepCallback, require_plain_model

log = logging.getLogger(__name__)

SNAPSHOT_FILE = "snapshot.json"
WEIGHTS_FILE = "model.safetensors"
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def snapshot_folder(run_folder: Path, step: int) -> Path:
    return run_folder / "snapshots" / step_name(step)


def checkpoint_file(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"{step_name(step)}.ckpt"


def manifest_file(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".json")


@dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """What `snapshot.json` says."""

    run: str
    step: int
    """Optimizer steps taken; 0 is the untrained network."""
    tokens: int | None
    data_fingerprint: str | None
    weights_sha256: str
    dtype: str
    babelscope_version: str | None = None
    torch_version: str | None = None
    transformers_version: str | None = None


def read_snapshot_info(folder: str | Path) -> SnapshotInfo | None:
    """What is known of the snapshot in `folder`, or None if there is no finished one (torn, or not a snapshot)."""
    try:
        content = json.loads((Path(folder) / SNAPSHOT_FILE).read_text(encoding="utf-8"))
        info = SnapshotInfo(
            **{field.name: content[field.name] for field in fields(SnapshotInfo) if field.name in content}
        )
        return info if (Path(folder) / WEIGHTS_FILE).is_file() else None
    except (OSError, ValueError, TypeError):
        return None


def write_snapshot(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    run: str,
    step: int,
    tokens: int | None = None,
    data_fingerprint: str | None = None,
    dtype: str = "float32",
    clones: dict[str, Any] | None = None,
) -> SnapshotInfo:
    """Write `model` and `tokenizer` as a folder that is there whole or not at all; a torn one is replaced.

    The live model is left as it is. `dtype` is that of the stored weights, `clones` the cloned languages of its
    training, see `analysis.snapshots.read_clones`.

    Raises:
        FileExistsError: `folder` holds a finished snapshot.
        OSError: no space, no permission; nothing is left behind.
    """
    folder = Path(folder)
    if read_snapshot_info(folder) is not None:
        raise FileExistsError(f"{folder}: a finished snapshot is there, and snapshots are never overwritten")
    with new_folder(folder) as unfinished:
        _save_model(unfinished, model, dtype)
        _save_tokenizer(unfinished, tokenizer)
        if clones:
            write_json(unfinished / CLONES_FILE, clones)
        info = SnapshotInfo(
            run=run,
            step=step,
            tokens=tokens,
            data_fingerprint=data_fingerprint,
            weights_sha256=file_sha256(unfinished / WEIGHTS_FILE),
            dtype=dtype,
            babelscope_version=_version("babelscope"),
            torch_version=_version("torch"),
            transformers_version=_version("transformers"),
        )
        write_json(unfinished / SNAPSHOT_FILE, asdict(info))
    return info


class SnapshotWriter(StepCallback):
    """Writes a snapshot at every scheduled optimizer step, once each, whatever the accumulation and the restarts.

    Lightning runs plain callbacks in listed order and `Checkpoint` callbacks after all of them. This is a plain one:
    list it before the analyses, so that the weights are safe on disk when an analysis takes the process down, and
    `ResumeCheckpoint` (a `Checkpoint`) comes last, so that its file says "everything of this step is done".

    A full disk costs the snapshot, never the training: it is logged, counted in `failures`, and training goes on.

    Args:
        schedule: optimizer steps at which to write; step 0 is written before the first step.
        dtype: type of the stored weights.
    """

    def __init__(self, schedule: Schedule | None = None, dtype: Dtype = "float32") -> None:
        self.schedule, self.dtype = required(schedule, "SnapshotWriter"), dtype
        self.failures = 0
        """Snapshots lost to a full disk or the like since the fit began."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        require_plain_model(pl_module, "snapshots need")
        if trainer.is_global_zero:
            remove_leftovers(Path(trainer.default_root_dir) / "snapshots")
        super().on_train_start(trainer, pl_module)
        same = self._write_if_due(trainer, pl_module)
        if not trainer.strategy.broadcast(same) and trainer.global_step == 0:
            raise ValueError(
                f"{trainer.default_root_dir}: its snapshot of step 0 has other weights, so another run lives there; "
                "choose another run folder, the same seed, or delete the folder"
            )

    def on_step(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        self._write_if_due(trainer, module)

    def _write_if_due(self, trainer: pl.Trainer, module: Any) -> bool:
        """Write this step if it is due; False if a snapshot with other weights is in its place."""
        step = trainer.global_step
        if not trainer.is_global_zero or not self.schedule.due(step, trainer.max_steps):
            return True
        folder = snapshot_folder(Path(trainer.default_root_dir), step)
        try:
            info = read_snapshot_info(folder)
            if info is not None:  # reached again after a kill
                return self._is_same(info, folder, module.model)
            write_snapshot(
                folder,
                module.model,
                module.tokenizer,
                run=Path(trainer.default_root_dir).resolve().name,
                step=step,
                tokens=getattr(module, "tokens_seen", None),
                data_fingerprint=getattr(trainer.datamodule, "fingerprint", None),  # type: ignore[attr-defined]
                clones=getattr(trainer.datamodule, "clones", None),  # type: ignore[attr-defined]
                dtype=self.dtype,
            )
        except (OSError, SafetensorError) as error:
            self.failures += 1
            log.error(
                "step %d: snapshot not written (%s); training goes on, %d lost so far", step, error, self.failures
            )
        return True

    def _is_same(self, info: SnapshotInfo, folder: Path, model: PreTrainedModel) -> bool:
        with TemporaryDirectory(dir=folder.parent, prefix=".", suffix=".tmp") as scratch:
            _save_model(Path(scratch), model, info.dtype)
            same = file_sha256(Path(scratch) / WEIGHTS_FILE) == info.weights_sha256
        if not same and info.step > 0:
            log.warning(
                "%s: kept, but it was written before a restart and its weights are not those that step %d has now "
                "(kernels that are not deterministic?); its results belong to the stored weights",
                folder,
                info.step,
            )
        return same


def _save_model(folder: Path, model: PreTrainedModel, dtype: str) -> None:
    """`save_pretrained` in one weights file of type `dtype`, without the marks that it leaves on the live config."""
    config = model.config
    before = {name: getattr(config, name, None) for name in ("dtype", "architectures")}
    showed_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # it would tear the bar of the training
    try:
        model.save_pretrained(folder, state_dict=_state_as(model, DTYPES[dtype]), max_shard_size="1TB")
    finally:
        for name, value in before.items():
            setattr(config, name, value)
        if showed_bars:
            transformers_logging.enable_progress_bar()
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"dtype": dtype}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is Exception:  # what `tokenizers` makes of every error of the system, a full disk too
            raise OSError(*error.args) from None
        raise


def _state_as(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict with floats as `dtype`; tensors that are tied stay tied, or they would be stored twice."""
    converted: dict[tuple[int, torch.Size], Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            key = (tensor.data_ptr(), tensor.shape)
            if key not in converted:
                converted[key] = tensor.to(dtype)
            tensor = converted[key]
        state[name] = tensor
    return state


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
