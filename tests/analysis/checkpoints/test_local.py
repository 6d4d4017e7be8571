"""Sources on disk: run folders of ours, Lightning checkpoints, Hugging Face folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from analysis.checkpoints.audit import hash_tensors
from analysis.checkpoints.loading import Loading
from analysis.checkpoints.local import LightningCheckpoint, LocalFolder, LocalFolders, RunFolder
from analysis.checkpoints.names import Naming
from analysis.checkpoints.weights import untie
from analysis.snapshots import CLONES_FILE, SnapshotId
from babelscope.records import Clone

CPU = Loading(device="cpu", check_tokenizer=False)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[2, 70, 71, 72]])).logits


def small_model(seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BloomForCausalLM(BloomConfig(vocab_size=264, hidden_size=16, n_layer=1, n_head=2)).eval()


def save_snapshot(run: Path, step: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = run / "snapshots" / f"step_{step:08d}"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    manifest = {"run": "demo", "step": step, "tokens": step * 1024, "data_fingerprint": "f", "weights_sha256": digest}
    (folder / "snapshot.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def run(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    for step in (4, 0, 16):
        save_snapshot(tmp_path / "demo", step, small_model(step), byte_tokenizer)
    return tmp_path / "demo"


def test_a_run_folder_lists_its_finished_snapshots_by_step(run: Path) -> None:
    (run / "snapshots" / "step_00000004" / "snapshot.json").unlink()
    source = RunFolder(path=run, loading=CPU)
    assert source.ids() == [SnapshotId("demo", 0, 0), SnapshotId("demo", 16, 16384)]


def test_an_opened_snapshot_is_the_saved_model(run: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    source = RunFolder(path=run, loading=CPU)
    with source.open(SnapshotId("demo", 16, 16384)) as snapshot:
        assert snapshot.id.step == 16
        assert torch.equal(logits(snapshot.model), logits(small_model(16)))
        assert snapshot.tokenizer("day")["input_ids"] == byte_tokenizer("day")["input_ids"]
        assert not snapshot.model.training


def test_a_step_that_is_not_there_is_named(run: Path) -> None:
    with (
        pytest.raises(ValueError, match="demo: no checkpoint for step 5; there are 0, 4, 16"),
        RunFolder(path=run, loading=CPU).open(SnapshotId("demo", 5)),
    ):
        pass


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"demo step 16 \(step_00000016\): no weights"),
        (lambda folder: (folder / "config.json").unlink(), r"demo step 16 \(step_00000016\): no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"demo step 16 \(step_00000016\): no usable tokenizer"),
    ],
)
def test_what_a_snapshot_lacks_is_named(run: Path, damage: object, message: str) -> None:
    damage(run / "snapshots" / "step_00000016")  # type: ignore[operator]
    with (
        pytest.raises(FileNotFoundError, match=message),
        RunFolder(path=run, loading=CPU).open(SnapshotId("demo", 16, 16384)),
    ):
        pass


def test_weights_that_training_did_not_write_are_told(run: Path) -> None:
    source = RunFolder(path=run, loading=CPU)
    good, bad = source.checkpoints()[:2]
    weights = run / "snapshots" / bad.name / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(bytes(content))
    hash_tensors(source.tensors(good, source.fetch(good)))
    with pytest.raises(ValueError, match=r"demo step 4 .*is not the file that snapshot.json was written for"):
        source.tensors(bad, source.fetch(bad))


def test_a_snapshot_that_is_removed_meanwhile_is_named(run: Path, tmp_path: Path) -> None:
    source = RunFolder(path=run, loading=CPU)
    assert len(source.ids()) == 3
    shutil.rmtree(run / "snapshots" / "step_00000016")
    with (
        pytest.raises(
            FileNotFoundError, match=r"demo step 16 \(step_00000016\): .*step_00000016 is not there any more"
        ),
        source.open(SnapshotId("demo", 16, 16384)),
    ):
        pass


def test_a_copy_beside_the_snapshots_is_none_of_them_and_a_link_is(run: Path, tmp_path: Path) -> None:
    snapshots = run / "snapshots"
    shutil.copytree(snapshots / "step_00000004", snapshots / "step_00000004_before")
    (snapshots / "step_00000016").rename(tmp_path / "elsewhere")
    (snapshots / "step_00000016").symlink_to(tmp_path / "elsewhere")
    (snapshots / "step_00000032").symlink_to(tmp_path / "nowhere")
    assert [one.step for one in RunFolder(path=run).ids()] == [0, 4, 16]


def test_a_damaged_manifest_and_an_empty_run_are_told(run: Path, tmp_path: Path) -> None:
    (run / "snapshots" / "step_00000004" / "snapshot.json").write_text('{"step": 4')
    with pytest.raises(ValueError, match=r"step_00000004/snapshot.json: damaged"):
        RunFolder(path=run).ids()
    (tmp_path / "new" / "snapshots").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no finished snapshot yet"):
        RunFolder(path=tmp_path / "new").ids()
    with pytest.raises(FileNotFoundError, match="expected the folder of a run"):
        RunFolder(path=tmp_path).ids()


def save_lightning(path: Path, model: PreTrainedModel, step: int, **extra: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "global_step": step, "pytorch-lightning_version": "2.6.6", **extra}, path)


def test_lightning_checkpoints_take_the_config_of_their_run(run: Path) -> None:
    for step in (8, 16):
        save_lightning(run / "checkpoints" / f"step_{step:08d}.ckpt", small_model(step), step)
    source = LightningCheckpoint(path=run / "checkpoints", loading=CPU, naming=Naming(tokens_per_step=1024))
    assert source.ids() == [SnapshotId("demo", 8, 8192), SnapshotId("demo", 16, 16384)]
    with source.open(SnapshotId("demo", 16, 16384)) as snapshot:
        assert torch.equal(logits(snapshot.model), logits(small_model(16)))


def test_cloned_languages_are_those_of_the_folder_with_the_config(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A vocabulary of twice the tokens is not another model's, with Lightning files, too."""
    model = BloomForCausalLM(BloomConfig(vocab_size=520, hidden_size=16, n_layer=1, n_head=2))
    snapshot = tmp_path / "run" / "snapshots" / "step_00000008"
    model.save_pretrained(snapshot)
    byte_tokenizer.save_pretrained(snapshot)
    (snapshot / CLONES_FILE).write_text('{"en2": {"of": "en", "shift": 256}}')
    save_lightning(tmp_path / "run" / "checkpoints" / "step_8.ckpt", model, 8)
    loading = Loading(device="cpu")
    for source in (
        LightningCheckpoint(path=tmp_path / "run" / "checkpoints", loading=loading),
        LightningCheckpoint(path=tmp_path / "run" / "checkpoints" / "step_8.ckpt", config=snapshot, loading=loading),
        LightningCheckpoint(path=tmp_path / "run" / "checkpoints", loading=loading, random_baseline=True),
    ):
        with source.open(source.ids()[0]) as opened:
            assert opened.clones == {"en2": Clone("en", 256)}


@pytest.mark.parametrize("link", [True, False])
def test_the_last_checkpoint_of_lightning_counts_once(run: Path, link: bool) -> None:
    for step in (8, 16):
        save_lightning(run / "checkpoints" / f"epoch=0-step={step}.ckpt", small_model(step), step)
    last = run / "checkpoints" / "last.ckpt"
    last.symlink_to("epoch=0-step=16.ckpt") if link else save_lightning(last, small_model(16), 16)
    named = [(one.id.step, one.name) for one in LightningCheckpoint(path=run / "checkpoints").checkpoints()]
    assert named == [(8, "epoch=0-step=8.ckpt"), (16, "epoch=0-step=16.ckpt")]
    last.unlink()
    save_lightning(last, small_model(24), 24)
    assert [one.id.step for one in LightningCheckpoint(path=run / "checkpoints").checkpoints()] == [8, 16, 24]


@pytest.mark.parametrize(("here", "path"), [(".", "checkpoints"), ("checkpoints", "."), ("checkpoints", "step_8.ckpt")])
def test_a_relative_path_names_the_run_and_finds_its_config(
    run: Path, monkeypatch: pytest.MonkeyPatch, here: str, path: str
) -> None:
    save_lightning(run / "checkpoints" / "step_8.ckpt", small_model(8), 8)
    monkeypatch.chdir(run / here)
    source = LightningCheckpoint(path=Path(path), loading=CPU)
    assert source.ids() == [SnapshotId("demo", 8)]
    assert source.fetch_config(source.checkpoints()[0]).is_relative_to(run)


@pytest.mark.parametrize("start", ["net.", "model._orig_mod.", "_orig_mod.model.", "wrapper.model."])
def test_lightning_weights_are_found_whatever_the_module_calls_its_model(run: Path, start: str) -> None:
    state = {f"{start}{key}": value for key, value in small_model(8).state_dict().items()}
    path = run / "checkpoints" / "step_8.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state | {"loss.weight": torch.ones(1)}, "global_step": 8}, path)
    prefix = start if start.startswith("wrapper") else None
    source = LightningCheckpoint(path=path, loading=CPU, prefix=prefix)
    with source.open(SnapshotId("demo", 8)) as snapshot:
        assert torch.equal(logits(snapshot.model), logits(small_model(8)))
    (one,), reference = source.checkpoints(), small_model(8).state_dict()
    assert hash_tensors(source.tensors(one, path)) == hash_tensors(untie(reference))


def test_a_lightning_file_and_the_snapshot_of_the_same_step_have_the_same_hash(run: Path) -> None:
    save_lightning(run / "checkpoints" / "last.ckpt", small_model(16), 16)
    lightning, snapshots = LightningCheckpoint(path=run / "checkpoints" / "last.ckpt"), RunFolder(path=run)
    (one,), other = lightning.checkpoints(), snapshots.checkpoints()[2]
    assert (one.id.step, one.id.tokens) == (16, None)
    assert hash_tensors(lightning.tensors(one, lightning.fetch(one))) == hash_tensors(
        snapshots.tensors(other, snapshots.fetch(other))
    )


def test_a_lightning_checkpoint_of_another_model_is_told(run: Path, tiny_xglm: PreTrainedModel) -> None:
    save_lightning(run / "checkpoints" / "step_8.ckpt", tiny_xglm, 8)
    with (
        pytest.raises(ValueError, match=r"demo step 8 \(step_8.ckpt\): step_8.ckpt holds another model"),
        LightningCheckpoint(path=run / "checkpoints", loading=CPU).open(SnapshotId("demo", 8)),
    ):
        pass


def test_a_lightning_checkpoint_that_would_run_code_is_refused(run: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (canary,)

    save_lightning(run / "checkpoints" / "step_8.ckpt", small_model(8), 8, callbacks=Bomb())
    with (
        pytest.raises(ValueError, match="step_8.ckpt is refused: the pickle holds more than tensors"),
        LightningCheckpoint(path=run / "checkpoints", loading=CPU).open(SnapshotId("demo", 8)),
    ):
        pass
    assert not canary.exists()


def test_a_lightning_checkpoint_without_a_config_says_what_to_do(tmp_path: Path) -> None:
    save_lightning(tmp_path / "step=8.ckpt", small_model(8), 8)
    with (
        pytest.raises(FileNotFoundError, match="set 'config' to a folder with config.json"),
        LightningCheckpoint(path=tmp_path, loading=CPU).open(SnapshotId(tmp_path.name, 8)),
    ):
        pass


def test_a_single_folder_tells_its_step_by_its_name(run: Path, tmp_path: Path) -> None:
    for name, step in (("checkpoint-100", 100), ("checkpoint-0", 0), ("final", 1)):
        folder = tmp_path / "copies" / name
        shutil.copytree(run / "snapshots" / "step_00000016", folder)
        assert [i.step for i in LocalFolder(path=folder).ids()] == [step]


def test_a_single_folder_is_a_run_of_one(run: Path) -> None:
    folder = run / "snapshots" / "step_00000016"
    source = LocalFolder(path=folder, run="mine", step=9, tokens=99, loading=CPU)
    assert source.ids() == [SnapshotId("mine", 9, 99)]
    with source.open(source.ids()[0]) as snapshot:
        assert torch.equal(logits(snapshot.model), logits(small_model(16)))


def test_folders_tell_their_steps_by_name(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    for name in ("global_step20", "global_step3", "final"):
        small_model(7).save_pretrained(tmp_path / "suite" / name)
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = LocalFolders(
        path=tmp_path / "suite",
        tokenizer=str(tmp_path / "tokenizer"),
        naming=Naming(tokens_per_step=10),
        random_baseline=True,
        loading=CPU,
    )
    assert source.ids() == [SnapshotId("suite", 0, 0), SnapshotId("suite", 3, 30), SnapshotId("suite", 20, 200)]
    with source.open(source.ids()[0]) as random, source.open(source.ids()[1]) as first:
        assert random.model.config.n_layer == first.model.config.n_layer
        assert not torch.equal(logits(random.model), logits(first.model))
        assert random.tokenizer is first.tokenizer


def test_nested_folders_tell_step_and_tokens_by_the_same_part(tmp_path: Path) -> None:
    for name in ("step50000-tokens210B", "step100000-tokens420B"):
        small_model(7).save_pretrained(tmp_path / "suite" / name / "hf")
    source = LocalFolders(path=tmp_path / "suite", pattern="*/hf")
    assert source.ids() == [SnapshotId("suite", 50_000, 210 * 10**9), SnapshotId("suite", 100_000, 420 * 10**9)]


def test_two_checkpoints_of_one_step_are_refused(tmp_path: Path) -> None:
    for name in ("stage1-step5", "stage2-step5"):
        small_model(0).save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="stage1-step5 and stage2-step5 both are step 5"):
        LocalFolders(path=tmp_path).ids()


def test_a_random_baseline_beside_a_real_step_0_is_refused(tmp_path: Path) -> None:
    small_model(0).save_pretrained(tmp_path / "step0")
    with pytest.raises(ValueError, match="has a step 0 of its own"):
        LocalFolders(path=tmp_path, random_baseline=True).ids()


def test_a_checkpoint_without_any_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    small_model(0).save_pretrained(tmp_path / "step5")
    source = LocalFolders(path=tmp_path, loading=CPU)
    with (
        pytest.raises(FileNotFoundError, match="no tokenizer beside the weights; set 'tokenizer'"),
        source.open(source.ids()[0]),
    ):
        pass
    source = LocalFolders(path=tmp_path, loading=CPU, tokenizer="nowhere")
    with (
        pytest.raises(FileNotFoundError, match="tokenizer nowhere: no such folder, and not a hub id"),
        source.open(source.ids()[0]),
    ):
        pass
