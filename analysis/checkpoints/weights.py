"""Weight files of one checkpoint: which they are, whether they are whole, and their tensors one at a time.

safetensors come first; pickled weights are only ever read with `weights_only=True`, so nothing in them is executed.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from babelscope.errors import one_line

if TYPE_CHECKING:
    from torch import Tensor

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")


def choose_weight_files(names: Iterable[str]) -> list[str]:
    """The files to fetch among the names in a checkpoint's folder: index and shards, or the single file.

    Shards are told by their names, as the content of the index is not at hand before the download. Empty if the
    folder holds no weights in a format that this project loads.
    """
    present = set(names)
    for index, single in zip(INDEXES, SINGLES, strict=True):
        if index in present:
            stem, suffix = single.rsplit(".", 1)
            return [index, *sorted(n for n in present if n.startswith(f"{stem}-") and n.endswith(f".{suffix}"))]
        if single in present:
            return [single]
    return []


def find_weight_files(folder: Path, name: str) -> list[Path]:
    """The files that hold the tensors of the checkpoint in `folder`, in shard order (without the index).

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is missing.
        ValueError: the index is damaged.
    """
    for index, single in zip(INDEXES, SINGLES, strict=True):
        if (folder / index).is_file():
            try:
                shards = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()), key=str)
            except (json.JSONDecodeError, KeyError, AttributeError, TypeError, UnicodeDecodeError):
                raise ValueError(f"{name}: {index} is damaged; delete it and fetch it again") from None
            for shard in shards:
                if not isinstance(shard, str) or Path(shard).is_absolute() or ".." in Path(shard).parts:
                    raise ValueError(
                        f"{name}: {index} names {shard!r}, which is not a file of this checkpoint; refused"
                    )
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"{name}: {len(missing)} of {len(shards)} weight files are missing: {missing[0]}"
                )
            return [folder / shard for shard in shards]
        if (folder / single).is_file():
            return [folder / single]
    raise FileNotFoundError(f"{name}: no weights in {folder}; expected {' or '.join(SINGLES)} (or their shards)")


def iter_tensors(files: Iterable[Path], name: str) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) of all files, sorted by key within a file, on the CPU in the stored dtype.

    safetensors are read tensor by tensor and pickled files are memory-mapped, so that one tensor at a time is in
    memory. Of tied weights the last name is given, which is the one that `save_pretrained` keeps.

    Raises:
        ValueError: a file is truncated or damaged, or holds more than tensors.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt") as tensors:
                    for key in sorted(tensors.keys()):
                        yield key, tensors.get_tensor(key)
            except SafetensorError as error:
                raise ValueError(f"{name}: {file.name} is truncated or damaged ({one_line(error)})") from None
        else:
            yield from untie(load_pickled(file, name))


def select_weights(state: Mapping[str, object], prefix: str | None) -> dict[str, object]:
    """A model's entries in the `state_dict` of a LightningModule, under the model's own names.

    `torch.compile` puts `_orig_mod.` into names; it is dropped wherever it stands. A `prefix` of None is the attribute
    that holds most of the entries (`model.` in this project, `net.` elsewhere).
    """
    plain = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    if prefix is None:
        owners = Counter(key.partition(".")[0] + "." for key in plain)
        prefix = owners.most_common(1)[0][0] if owners else ""
    return {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}


def untie(state: Mapping[str, object]) -> list[tuple[str, Tensor]]:
    """The tensors of `state`, sorted by name; of the names that share one storage only the last."""
    from torch import Tensor

    tensors = {key: value for key, value in sorted(state.items()) if isinstance(value, Tensor)}
    last = {(value.data_ptr(), value.shape, value.stride()): key for key, value in tensors.items()}
    return [(key, tensors[key]) for key in sorted(last.values())]


def load_pickled(file: Path, name: str, *, mmap: bool = True) -> dict:
    """`torch.load` with `weights_only=True`, memory-mapped with `mmap` where the file format allows.

    Raises:
        ValueError: the file is truncated or damaged, or asks to run code.
    """
    import torch

    try:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise ValueError(
                f"{name}: {file.name} is refused: the pickle holds more than tensors and could run code; "
                "ask its authors for safetensors"
            ) from None
        raise ValueError(f"{name}: {file.name} is truncated or damaged ({one_line(error)})") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise ValueError(f"{name}: {file.name} is truncated or damaged ({one_line(error)})") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{name}: {file.name} holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded
