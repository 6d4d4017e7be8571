"""Snapshots: whole or absent, once a step, loadable by plain transformers, and never at the cost of the training."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
from copy import deepcopy
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.checkpoints.local import RunFolder
from babelscope.records import Clone
from callbacks import snapshots as checkpoint_module
from callbacks.schedule import Schedule
from callbacks.snapshots import SnapshotWriter, read_snapshot_info, snapshot_folder, write_snapshot


class Training(pl.LightningModule):
    """What callbacks see of the real module: `model`, `tokenizer`, `tokens_seen`."""

    def __init__(self, model, tokenizer):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @property
    def tokens_seen(self):
        return self.trainer.global_step * 96

    def training_step(self, batch, batch_idx):
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.model.parameters(), lr=1e-3)


@pytest.fixture
def fit(tiny_xglm, byte_tokenizer, tmp_path):
    """`fit(writer, steps)` trains a fresh copy of the tiny model in `tmp_path/demo` and returns the module."""

    def run(*callbacks, max_steps=4, accumulate=1, name="demo", seed=0, tokenizer=byte_tokenizer):
        blocks = torch.randint(4, 384, (40, 12), generator=torch.Generator().manual_seed(7))
        model = deepcopy(tiny_xglm)
        if seed:
            with torch.no_grad():
                model.model.embed_tokens.weight.add_(seed)
        module = Training(model, tokenizer)
        trainer = pl.Trainer(
            max_steps=max_steps,
            accumulate_grad_batches=accumulate,
            callbacks=list(callbacks),
            default_root_dir=tmp_path / name,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(module, DataLoader(blocks, batch_size=2))
        return module

    return run


def steps_in(run_folder: Path) -> list[int]:
    return sorted(
        info.step for f in (run_folder / "snapshots").iterdir() if (info := read_snapshot_info(f)) is not None
    )


def test_a_snapshot_loads_in_plain_transformers_with_the_same_logits(tiny_xglm, byte_tokenizer, tmp_path):
    info = write_snapshot(tmp_path / "s", tiny_xglm, byte_tokenizer, run="demo", step=16, tokens=1024)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "s").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "s")
    batch = tokenizer("ein Satz", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, tiny_xglm(**batch).logits)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert info == read_snapshot_info(tmp_path / "s")
    assert (info.run, info.step, info.tokens, info.dtype) == ("demo", 16, 1024, "float32")
    assert info.weights_sha256 == hashlib.sha256((tmp_path / "s" / "model.safetensors").read_bytes()).hexdigest()
    assert (tmp_path / "s" / "generation_config.json").is_file()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_can_be_stored_narrow_without_touching_the_live_model(tiny_xglm, byte_tokenizer, tmp_path, dtype):
    model = deepcopy(tiny_xglm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    write_snapshot(tmp_path / "narrow", model, byte_tokenizer, run="r", step=1, dtype=dtype)
    write_snapshot(tmp_path / "wide", model, byte_tokenizer, run="r", step=1)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow", dtype="auto")
    expected = getattr(torch, dtype)
    assert loaded.dtype == expected
    assert torch.equal(loaded.model.embed_tokens.weight, tiny_xglm.model.embed_tokens.weight.to(expected))
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("narrow", "wide")]
    assert sizes[0] < 0.6 * sizes[1]


def test_untied_models_and_other_architectures_are_stored_whole(tiny_llama, byte_tokenizer, tmp_path):
    write_snapshot(tmp_path / "s", tiny_llama, byte_tokenizer, run="r", step=0, dtype="bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "s", dtype=torch.float32)
    for name, tensor in tiny_llama.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(torch.bfloat16).float()), name


def test_a_finished_snapshot_is_never_overwritten(tiny_xglm, byte_tokenizer, tmp_path):
    write_snapshot(tmp_path / "s", tiny_xglm, byte_tokenizer, run="r", step=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    with pytest.raises(FileExistsError, match="never overwritten"):
        write_snapshot(tmp_path / "s", tiny_xglm, byte_tokenizer, run="r", step=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before


@pytest.mark.parametrize("damage", ["no mark", "half a mark", "mark of nothing", "no weights", "empty folder"])
def test_a_torn_folder_is_ignored_and_rewritten(tiny_xglm, byte_tokenizer, tmp_path, damage):
    folder = tmp_path / "s"
    write_snapshot(folder, tiny_xglm, byte_tokenizer, run="r", step=1)
    mark = folder / "snapshot.json"
    if damage == "no mark":
        mark.unlink()
    elif damage == "half a mark":
        mark.write_text(mark.read_text()[:40])
    elif damage == "mark of nothing":
        mark.write_text("[]")
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    else:
        for path in folder.iterdir():
            path.unlink()
    assert read_snapshot_info(folder) is None
    write_snapshot(folder, tiny_xglm, byte_tokenizer, run="r", step=5)
    info = read_snapshot_info(folder)
    assert info is not None
    assert info.step == 5


def test_a_mark_with_fields_of_a_later_version_is_still_a_mark(tiny_xglm, byte_tokenizer, tmp_path):
    info = write_snapshot(tmp_path / "s", tiny_xglm, byte_tokenizer, run="r", step=1)
    mark = tmp_path / "s" / "snapshot.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"colour": "blue"}))
    assert read_snapshot_info(tmp_path / "s") == info


def test_missing_folder_is_no_snapshot(tmp_path):
    assert read_snapshot_info(tmp_path / "nothing") is None


def test_every_scheduled_step_is_written_once_under_accumulation(fit, tmp_path, monkeypatch):
    written = []
    original = checkpoint_module.write_snapshot
    monkeypatch.setattr(
        checkpoint_module, "write_snapshot", lambda *a, **k: written.append(k["step"]) or original(*a, **k)
    )
    fit(SnapshotWriter(Schedule(base=2)), max_steps=5, accumulate=3)
    assert written == [0, 1, 2, 4, 5]
    assert steps_in(tmp_path / "demo") == [0, 1, 2, 4, 5]
    infos = [read_snapshot_info(snapshot_folder(tmp_path / "demo", step)) for step in written]
    assert [(info.run, info.step, info.tokens) for info in infos] == [("demo", s, s * 96) for s in written]
    assert len({info.weights_sha256 for info in infos}) == len(written)


def test_step_zero_holds_the_untrained_weights_and_the_last_step_the_final_ones(fit, tiny_xglm, tmp_path):
    module = fit(SnapshotWriter(Schedule(base=None)), SnapshotWriter(Schedule(base=2, last=False)), max_steps=3)
    first = AutoModelForCausalLM.from_pretrained(snapshot_folder(tmp_path / "demo", 0))
    last = AutoModelForCausalLM.from_pretrained(snapshot_folder(tmp_path / "demo", 3))
    for name, tensor in tiny_xglm.state_dict().items():
        assert torch.equal(first.state_dict()[name], tensor)
    for name, tensor in module.model.state_dict().items():
        assert torch.equal(last.state_dict()[name], tensor)


def test_writing_snapshots_does_not_change_the_training(fit):
    plain = fit(max_steps=4, name="plain").model.state_dict()
    watched = fit(SnapshotWriter(Schedule(every=1), dtype="bfloat16"), max_steps=4, name="watched").model.state_dict()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_snapshots_come_before_callbacks_listed_later(fit, tmp_path):
    seen = []

    class Later(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.look(trainer)

        def on_train_batch_end(self, trainer, *args):
            self.look(trainer)

        def look(self, trainer):
            if read_snapshot_info(snapshot_folder(tmp_path / "demo", trainer.global_step)) is not None:
                seen.append(trainer.global_step)

    fit(SnapshotWriter(Schedule(every=1)), Later(), max_steps=3)
    assert seen == [0, 1, 2, 3]


def test_steps_reached_again_keep_their_snapshot_and_equal_weights_are_not_worth_a_word(fit, tmp_path, caplog):
    fit(SnapshotWriter(Schedule(every=1)), max_steps=3)
    before = {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*.*") if path.is_file()}
    with caplog.at_level(logging.WARNING, "callbacks.snapshots"):
        fit(SnapshotWriter(Schedule(every=1)), max_steps=3)
    assert [record for record in caplog.records if record.name.startswith("callbacks")] == []
    assert {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*.*") if path.is_file()} == before


def test_other_weights_at_a_step_reached_again_are_named_and_the_old_snapshot_is_kept(
    fit, tiny_xglm, byte_tokenizer, tmp_path, caplog
):
    planted = write_snapshot(snapshot_folder(tmp_path / "demo", 2), tiny_xglm, byte_tokenizer, run="demo", step=2)
    with caplog.at_level(logging.WARNING, "callbacks.snapshots"):
        fit(SnapshotWriter(Schedule(every=1)), max_steps=3)
    assert [record.message.split(":")[0] for record in caplog.records if record.levelno == logging.WARNING] == [
        str(snapshot_folder(tmp_path / "demo", 2))
    ]
    assert read_snapshot_info(snapshot_folder(tmp_path / "demo", 2)) == planted


def test_a_folder_of_another_run_is_refused_before_the_first_step(fit, tmp_path):
    fit(SnapshotWriter(Schedule()), max_steps=1)
    with pytest.raises(ValueError, match=r"snapshot of step 0 has other weights.*choose another run folder"):
        fit(SnapshotWriter(Schedule()), max_steps=2, seed=1)
    assert steps_in(tmp_path / "demo") == [0, 1]


def test_leftovers_of_a_killed_writer_are_cleared(fit, tmp_path):
    torso = tmp_path / "demo" / "snapshots" / ".step_00000001.abc.tmp"
    torso.mkdir(parents=True)
    (torso / "model.safetensors").write_bytes(b"half")
    fit(SnapshotWriter(Schedule()), max_steps=1)
    assert not torso.exists()
    assert steps_in(tmp_path / "demo") == [0, 1]


@pytest.mark.parametrize("part", ["weights", "tokenizer"])
def test_a_full_disk_costs_the_snapshot_but_not_the_training(fit, tmp_path, monkeypatch, caplog, part):
    expected = fit(max_steps=4, name="plain").model.state_dict()
    original = checkpoint_module._save_model

    def full_at_two(folder, model, dtype):
        original(folder, model, dtype)
        if "00000002" in folder.name:
            if part == "weights":
                raise OSError(errno.ENOSPC, "No space left on device")
            (folder / "tokenizer.json").symlink_to("/dev/full")

    monkeypatch.setattr(checkpoint_module, "_save_model", full_at_two)
    writer = SnapshotWriter(Schedule(every=1))
    with caplog.at_level(logging.ERROR, "callbacks.snapshots"):
        trained = fit(writer, max_steps=4).model.state_dict()
    assert steps_in(tmp_path / "demo") == [0, 1, 3, 4]
    assert writer.failures == 1
    assert re.search(r"step 2: snapshot not written \(.*No space left on device", caplog.text)
    assert [path.name for path in (tmp_path / "demo" / "snapshots").iterdir() if path.name.startswith(".")] == []
    assert all(torch.equal(expected[name], trained[name]) for name in expected)


def test_an_unknown_dtype_is_refused():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SnapshotWriter, "writer")
    with pytest.raises(ArgumentError, match="float8"):
        parser.parse_object({"writer": {"schedule": {"base": 2}, "dtype": "float8"}})


def test_a_module_without_a_tokenizer_is_refused(fit):
    with pytest.raises(ValueError, match="Training has no attribute 'tokenizer'"):
        fit(SnapshotWriter(Schedule()), tokenizer=None)


def test_no_progress_bar_tears_the_one_of_the_training(tiny_xglm, byte_tokenizer, tmp_path, capfd):
    write_snapshot(tmp_path / "s", tiny_xglm, byte_tokenizer, run="r", step=1)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_snapshot_says_which_languages_are_cloned(tiny_xglm, byte_tokenizer, tmp_path):
    model = deepcopy(tiny_xglm)
    model.resize_token_embeddings(2 * len(byte_tokenizer), mean_resizing=False)
    clones = {"en2": {"of": "en", "shift": len(byte_tokenizer)}}
    run = tmp_path / "run"
    write_snapshot(snapshot_folder(run, 0), model, byte_tokenizer, run="run", step=0, clones=clones)
    model.resize_token_embeddings(len(byte_tokenizer))
    write_snapshot(snapshot_folder(run, 1), model, byte_tokenizer, run="run", step=1)
    source = RunFolder(path=run)
    found = []
    for identity in source.ids():
        with source.open(identity) as snapshot:
            found.append(dict(snapshot.clones))
    assert found == [{"en2": Clone("en", len(byte_tokenizer))}, {}]
