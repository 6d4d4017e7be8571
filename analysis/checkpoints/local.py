"""Sources on the local disk: a run folder of ours, Lightning checkpoints, Hugging Face folders, GGUF files.

runs/<name>/snapshots/step_00000016/snapshot.json      written last, so its presence means "complete"
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.checkpoints.source import Checkpoint, CheckpointSource
from analysis.checkpoints.weights import INDEXES, SINGLES, load_pickled, select_weights, untie
from analysis.snapshots import SnapshotId, step_of
from babelscope.errors import one_line
from babelscope.files import file_sha256

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

MANIFEST = "snapshot.json"


@dataclass(kw_only=True)
class LocalSource(CheckpointSource):
    """Base of the sources of files that nobody's manifest describes."""

    path: Path
    """A folder; of Lightning checkpoints a folder or one `.ckpt` file."""

    @property
    def origin(self) -> str:
        return str(self.path.resolve())

    def _made(self, run: str, step: int, told_by: str, place: Path, name: str) -> Checkpoint:
        """The checkpoint in the file or folder `place`; `told_by` is the name that may tell its tokens."""
        snapshot_id = SnapshotId(run, step, self.naming.tokens(told_by, step))
        return Checkpoint(id=snapshot_id, name=name, size=_size(place), marks=_stamp(place))


@dataclass(kw_only=True)
class RunFolder(CheckpointSource):
    """The snapshots of a run of ours: `<path>/snapshots/step_*/`, those with a `snapshot.json` (the done marker)."""

    path: Path
    """The run's folder, e.g. runs/demo."""

    def list_checkpoints(self) -> Sequence[Checkpoint]:
        snapshots = self.path / "snapshots"
        if not snapshots.is_dir():
            raise FileNotFoundError(f"{self.path}: no folder 'snapshots'; expected the folder of a run (runs/<name>)")
        found = []
        for folder in sorted(p for p in snapshots.iterdir() if step_of(p.name) is not None and p.is_dir()):
            manifest = folder / MANIFEST
            if not manifest.is_file():
                logger.warning("%s: no %s, so it is unfinished and left out", folder, MANIFEST)
                continue
            try:
                content = json.loads(manifest.read_text(encoding="utf-8"))
                step, tokens = int(content["step"]), content.get("tokens")
                run = self.run or str(content["run"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{manifest}: damaged ({one_line(error)}); delete the folder to leave it out"
                ) from None
            marks = {"weights_sha256": content["weights_sha256"]} if content.get("weights_sha256") else {}
            found.append(
                Checkpoint(id=SnapshotId(run, step, tokens), name=folder.name, size=_size(folder), marks=marks)
            )
        if not found:
            raise FileNotFoundError(f"{snapshots}: no finished snapshot yet; training writes them on its schedule")
        return found

    def fetch(self, checkpoint: Checkpoint) -> Path:
        return self.path / "snapshots" / checkpoint.name

    def tensors(self, checkpoint: Checkpoint, path: Path) -> Iterator[tuple[str, Tensor]]:
        """As the base, after a check that the file is the one that training wrote (safetensors has no checksum)."""
        if (path / SINGLES[0]).is_file():
            self.verify(checkpoint)
        return super().tensors(checkpoint, path)

    def verify(self, checkpoint: Checkpoint) -> None:
        """Raise ValueError for weights that are not those of the snapshot's manifest."""
        promised, file = checkpoint.marks.get("weights_sha256"), self.fetch(checkpoint) / SINGLES[0]
        if promised is not None and file_sha256(file) != promised:
            raise ValueError(f"{self.label(checkpoint)}: {file.name} is not the file that {MANIFEST} was written for")


@dataclass(kw_only=True)
class LocalFolder(LocalSource):
    """One Hugging Face folder, or a GGUF file in a folder, as a run of one checkpoint."""

    step: int | None = None
    """The step that it is shown at; None is what the folder's name tells (`checkpoint-100`), else 1."""
    tokens: int | None = None
    gguf_file: str | None = None
    """Name of a GGUF file in the folder; its weights are dequantised, its tokenizer is used unless one is named."""

    def list_checkpoints(self) -> Sequence[Checkpoint]:
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no such folder; expected config.json and weights (or a gguf_file)")
        name = self.path.resolve().name
        told = self.naming.step(name) if self.step is None else self.step
        place = self.path if self.gguf_file is None else self.path / self.gguf_file
        if not place.exists():
            raise FileNotFoundError(f"{place}: no such GGUF file")
        made = self._made(self.run or name, 1 if told is None else told, name, place, place.name)
        return [made if self.tokens is None else replace(made, id=replace(made.id, tokens=self.tokens))]

    def fetch(self, checkpoint: Checkpoint) -> Path:
        return self.path

    def load(self, checkpoint: Checkpoint, path: Path) -> PreTrainedModel:
        from analysis.checkpoints.loading import load_model

        return load_model(path, self.label(checkpoint), self.loading, gguf_file=self.gguf_file)

    def tokenizer_options(self) -> dict[str, str]:
        return {"gguf_file": self.gguf_file} if self.gguf_file is not None and self.tokenizer is None else {}

    def tokenizer_folder(self, checkpoint: Checkpoint, path: Path) -> Path:
        if self.gguf_file is not None and self.tokenizer is None:
            return path
        return super().tokenizer_folder(checkpoint, path)

    def tensors(self, checkpoint: Checkpoint, path: Path) -> Iterator[tuple[str, Tensor]]:
        if self.gguf_file is None:
            return super().tensors(checkpoint, path)
        import torch

        file = path / self.gguf_file
        return iter([(file.name, torch.from_file(str(file), size=file.stat().st_size, dtype=torch.uint8))])


@dataclass(kw_only=True)
class LocalFolders(LocalSource):
    """A folder of Hugging Face folders whose names tell the step: a downloaded or converted suite."""

    pattern: str = "*"
    """Glob for the checkpoint folders below `path` (`*/hf` for suites that nest them)."""

    def list_checkpoints(self) -> Sequence[Checkpoint]:
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no such folder")
        run = self.run or self.path.resolve().name
        found = []
        for folder in sorted(p for p in self.path.glob(self.pattern) if (p / "config.json").is_file()):
            name = folder.relative_to(self.path).as_posix()
            told = [(step, part) for part in reversed(name.split("/")) if (step := self.naming.step(part)) is not None]
            if not told:
                logger.warning("%s: its name tells no step, so it is left out (naming.step_pattern)", folder)
                continue
            found.append(self._made(run, *told[0], folder, name))
        if not found:
            raise FileNotFoundError(
                f"{self.path}: no folder that matches {self.pattern!r}, has a config.json and tells its step"
            )
        return found

    def fetch(self, checkpoint: Checkpoint) -> Path:
        return self.path / checkpoint.name


@dataclass(kw_only=True)
class LightningCheckpoint(LocalSource):
    """Lightning `.ckpt` files: one file, or all in a folder. Weights are the entries of `state_dict` that belong to the
    model, whatever attribute of the LightningModule it was, compiled or not."""

    config: Path | None = None
    """Folder with the model's config.json (and tokenizer); None takes the newest snapshot of the same run folder."""
    prefix: str | None = None
    """Start of the names of the model's weights in `state_dict`, e.g. `wrapper.model.`; None finds it."""

    @property
    def folder(self) -> Path:
        """The folder that holds the files, as a whole path."""
        return (self.path if self.path.is_dir() else self.path.parent).absolute()

    def list_checkpoints(self) -> Sequence[Checkpoint]:
        files = sorted(self.path.glob("*.ckpt")) if self.path.is_dir() else [self.path]
        if not files or not files[0].is_file():
            raise FileNotFoundError(f"{self.path}: no Lightning checkpoint (*.ckpt)")
        run = self.run or (self.folder.parent if self.folder.name == "checkpoints" else self.folder.resolve()).name
        told = {file: self.naming.step(file.stem) for file in files}
        found = []
        for file, step in told.items():
            if step is None:
                step = load_pickled(file, file.name).get("global_step")
                if step is not None and step in told.values():
                    logger.info("%s: step %s again, as Lightning's last.ckpt is; left out", file, step)
                    continue
            if not isinstance(step, int):
                raise ValueError(f"{file}: neither its name nor its content tells the step (naming.step_pattern)")
            found.append(self._made(run, step, file.stem, file, file.name))
        return found

    def fetch(self, checkpoint: Checkpoint) -> Path:
        return self.path / checkpoint.name if self.path.is_dir() else self.path

    def fetch_config(self, checkpoint: Checkpoint) -> Path:
        if self.config is not None:
            return self.config
        snapshots = sorted(p.parent for p in (self.folder.parent / "snapshots").glob("step_*/config.json"))
        if not snapshots:
            raise FileNotFoundError(
                f"{self.label(checkpoint)}: a .ckpt holds no model config; set 'config' to a folder with config.json"
            )
        return snapshots[-1]

    def load(self, checkpoint: Checkpoint, path: Path) -> PreTrainedModel:
        from analysis.checkpoints.loading import load_lightning

        return load_lightning(path, self.fetch_config(checkpoint), self.label(checkpoint), self.loading, self.prefix)

    def config_folder(self, checkpoint: Checkpoint, path: Path) -> Path:
        return self.fetch_config(checkpoint)

    def tensors(self, checkpoint: Checkpoint, path: Path) -> Iterator[tuple[str, Tensor]]:
        state = load_pickled(path, self.label(checkpoint)).get("state_dict", {})
        return iter(untie(select_weights(state, self.prefix)))


def _size(place: Path) -> int | None:
    """Bytes of a file, or of the weight files in a folder, shards included."""
    if place.is_file():
        return place.stat().st_size
    stems = tuple(single.rsplit(".", 1)[0] for single in SINGLES)
    named = (path for path in place.iterdir() if path.name.startswith(stems) and path.name not in INDEXES)
    sizes = [path.stat().st_size for path in named if path.is_file() and path.suffix in {".safetensors", ".bin"}]
    return sum(sizes) or None


def _stamp(path: Path) -> dict[str, str]:
    """A mark for files without a manifest: sizes and times of what the model is made of."""
    files = (
        [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in {".safetensors", ".bin", ".json"})
    )
    text = "\n".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    return {"files": hashlib.sha256(text.encode()).hexdigest()[:16]}
