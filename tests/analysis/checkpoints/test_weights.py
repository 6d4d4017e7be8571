"""Weight files: chosen by format, read one tensor at a time, never executed, and refused when damaged."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from analysis.checkpoints.audit import hash_tensors
from analysis.checkpoints.weights import choose_weight_files, find_weight_files, iter_tensors, load_pickled


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "config.json"], ["model.safetensors"]),
        (["pytorch_model.bin", "flax_model.msgpack", "optimizer.bin"], ["pytorch_model.bin"]),
        (
            ["model.safetensors.index.json", "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "training_args.bin"],
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
        ),
        (["config.json", "tf_model.h5"], []),
    ],
)
def test_the_files_to_fetch_are_told_by_their_names(present: list[str], chosen: list[str]) -> None:
    assert choose_weight_files(present) == chosen


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one", "b": "two"}}))
    save_file({"a": torch.ones(1)}, tmp_path / "one")
    with pytest.raises(FileNotFoundError, match=r"run step 3: 1 of 2 weight files are missing: two"):
        find_weight_files(tmp_path, "run step 3")


def test_a_damaged_index_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run step 3: no weights"):
        find_weight_files(tmp_path, "run step 3")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match="run step 3: model.safetensors.index.json is damaged"):
        find_weight_files(tmp_path, "run step 3")


def test_the_container_does_not_change_the_hash(tmp_path: Path, tiny_bloom: PreTrainedModel) -> None:
    tiny_bloom.save_pretrained(tmp_path / "one")
    tiny_bloom.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    (tmp_path / "bin").mkdir()
    torch.save(tiny_bloom.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    legacy = tmp_path / "legacy"
    legacy.mkdir()
    torch.save(tiny_bloom.state_dict(), legacy / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert len(find_weight_files(tmp_path / "shards", "x")) > 1
    hashes = {
        name: hash_tensors(iter_tensors(find_weight_files(tmp_path / name, "x"), "x"))
        for name in ("one", "shards", "bin", "legacy")
    }
    assert len(set(hashes.values())) == 1, hashes


def test_one_changed_weight_changes_the_hash() -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    original = hash_tensors(weights.items())
    assert hash_tensors(reversed(weights.items())) == original
    assert hash_tensors([("a", weights["a"].reshape(3, 2)), ("b", weights["b"])]) != original
    changed = weights["a"].clone()
    changed[1, 2] += 1e-6 * 5
    assert hash_tensors([("a", changed), ("b", weights["b"])]) != original


@pytest.mark.parametrize("keep", [0, 7, 300, 0.9])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_is_named(tmp_path: Path, file: str, keep: float) -> None:
    path = tmp_path / file
    weights = {"a": torch.ones(50, 50)}
    save_file(weights, path) if file.endswith("safetensors") else torch.save(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(ValueError, match=f"run step 3: {file} is truncated or damaged"):
        list(iter_tensors([path], "run step 3"))


class _Bomb:
    """Unpickled by a careless loader, it makes the canary file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, container: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "pytorch_model.bin"
    payload = {"a": torch.ones(2), "b": _Bomb(canary)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(ValueError, match=r"run step 3: pytorch_model.bin is (refused|truncated or damaged)"):
        load_pickled(path, "run step 3")
    assert not canary.exists()
    pickle.loads(pickle.dumps(_Bomb(canary)))
    assert canary.exists(), "the bomb must be a live one"


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds a list"):
        load_pickled(tmp_path / "pytorch_model.bin", "x")


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "a/../../b", 7, ["x"]])
def test_an_index_that_points_outside_is_refused(shard: object, tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes(b"")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match=r"suite step 3: model\.safetensors\.index\.json (names .*refused|is damaged)"):
        find_weight_files(folder, "suite step 3")
