"""Signals and full disks: saved or cleanly unsaved, no hang, nothing torn, and the resumed run is the same run."""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from babelscope.files import HashingFile
from callbacks.checkpoint_io import checkpoint_step, find_checkpoints, find_damage, newest_checkpoint
from callbacks.resume import ResumeCheckpoint
from callbacks.signals import StoppedBySignal, StopSignals
from callbacks.snapshots import checkpoint_file
from tests.callbacks.forked import in_child


class Data(pl.LightningDataModule):
    """Eight batches an epoch, the same in every epoch; rank 1 validates on fewer batches than rank 0."""

    blocks = torch.randn(32, 6, generator=torch.Generator().manual_seed(5))

    def train_dataloader(self):
        trainer = self.trainer
        assert trainer is not None

        class FromStep:
            def __len__(self):
                return 8

            def __iter__(self):
                yield from torch.arange(32).view(8, 4)[trainer.global_step % 8 :].tolist()

        return DataLoader(TensorDataset(self.blocks), batch_sampler=FromStep())

    def val_dataloader(self):
        assert self.trainer is not None
        return DataLoader(TensorDataset(self.blocks[: 12 - 4 * self.trainer.global_rank]), batch_size=4)


class Network(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 1))
        self.validated = []
        self.losses = []

    def training_step(self, batch, batch_idx):
        return (self.layers(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()

    def on_validation_epoch_start(self):
        self.losses = []

    def validation_step(self, batch, batch_idx):
        self.losses.append(self.layers(batch[0]).mean().item())

    def on_validation_epoch_end(self):
        self.validated.append((self.trainer.global_step, tuple(self.losses)))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class At(pl.Callback):
    """Calls `action()` when `hook` runs for the first time at `step`."""

    def __init__(self, hook: str, step: int, action: Callable[[], None]):
        self.step, self.action, self.done = step, action, False
        setattr(self, hook, self._visit)

    def _visit(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step and not self.done:
            self.done = True
            self.action()


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def train(folder: Path, *callbacks: pl.Callback, **options: Any) -> Network:
    torch.manual_seed(99)
    defaults: dict[str, Any] = {"max_steps": 12, "accelerator": "cpu", "val_check_interval": 4, "devices": 1}
    trainer = pl.Trainer(
        max_epochs=-1,
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ResumeCheckpoint) for callback in callbacks),
        default_root_dir=folder,
        callbacks=list(callbacks),
        **(defaults | options),
    )
    module = Network()
    start = newest_checkpoint(folder)
    trainer.fit(module, datamodule=Data(), ckpt_path=start, weights_only=True if start else None)
    return module


def wait_for(child: int, seconds: float = 60.0) -> int:
    """Exit code of a child; one that hangs is killed and fails the test."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return pytest.fail(f"process {child} hangs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Network:
    """An uninterrupted training."""
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("whole"))


# signals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("hook", "step", "saved"),
    [
        ("on_before_zero_grad", 5, 6),  # during a step: the step is finished
        ("on_train_batch_end", 6, 6),  # during an analysis
        ("on_validation_batch_start", 4, 4),  # during a validation inside an epoch
        ("on_validation_batch_start", 8, 8),  # ... at the end of an epoch
        ("on_save_checkpoint", 6, 7),  # during a save: that one and the next are whole
        ("on_validation_batch_start", 12, 9),  # after the last step: a finished run could not validate again
        ("on_train_start", 0, None),  # nothing to save yet
    ],
)
def test_a_signal_saves_and_stops_and_the_resumed_run_is_the_same(tmp_path, whole, caplog, number, hook, step, saved):
    with pytest.raises(StoppedBySignal) as stopped:
        train(tmp_path, At(hook, step, send(number)), ResumeCheckpoint(every_n_steps=3))
    assert stopped.value.code == 128 + number
    newest = newest_checkpoint(tmp_path)
    assert (checkpoint_step(newest) if newest else None) == saved
    assert ("the start, nothing was saved yet" if saved is None else f"goes on from step {saved}") in caplog.text
    resumed = train(tmp_path, ResumeCheckpoint())
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    begun = (saved or 0) + (0 if hook == "on_validation_batch_start" and saved == step else 1)
    assert resumed.validated == [row for row in whole.validated if row[0] >= begun]


def test_a_signal_after_the_last_step_lets_a_finished_run_be_finished(tmp_path):
    whole = train(tmp_path / "whole", limit_val_batches=0)
    trained = train(
        tmp_path, At("on_train_batch_end", 12, send(signal.SIGTERM)), ResumeCheckpoint(), limit_val_batches=0
    )
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), trained.parameters(), strict=True))
    assert checkpoint_step(newest_checkpoint(tmp_path)) == 12


@pytest.mark.parametrize("fails", [False, True])
def test_the_handlers_are_given_back(tmp_path, fails):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]

    def check():
        assert isinstance(getattr(signal.getsignal(signal.SIGUSR1), "__self__", None), StopSignals)
        if fails:
            raise RuntimeError("planted")

    callbacks = (At("on_train_batch_end", 2, check), ResumeCheckpoint(signals=("SIGTERM", "SIGUSR1")))
    if fails:
        with pytest.raises(RuntimeError, match="planted"):
            train(tmp_path, *callbacks)
    else:
        train(tmp_path, *callbacks)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_the_second_signal_ends_the_process_at_once(tmp_path):
    def twice():
        send(signal.SIGTERM)()
        send(signal.SIGTERM)()
        (tmp_path / "survived").touch()

    child = in_child(lambda: train(tmp_path, At("on_train_batch_end", 5, twice), ResumeCheckpoint(every_n_steps=3)))
    assert wait_for(child) == 128 + signal.SIGTERM
    assert not (tmp_path / "survived").exists()
    assert checkpoint_step(newest_checkpoint(tmp_path)) == 3


def test_a_process_that_never_reaches_the_end_of_its_step_ends_after_the_grace_period(tmp_path):
    def stuck():
        send(signal.SIGTERM)()
        time.sleep(300)

    saver = ResumeCheckpoint(every_n_steps=3, grace_seconds=0.3)
    child = in_child(lambda: train(tmp_path, At("on_train_batch_end", 5, stuck), saver))
    assert wait_for(child) == 128 + signal.SIGTERM
    assert checkpoint_step(newest_checkpoint(tmp_path)) == 3


def test_a_forked_worker_leaves_ctrl_c_to_its_parent_but_can_be_terminated():
    signals = StopSignals()
    signals.install()
    try:
        worker = in_child(lambda: time.sleep(300))
        time.sleep(0.1)
        os.kill(worker, signal.SIGINT)
        time.sleep(0.1)
        assert os.waitpid(worker, os.WNOHANG) == (0, 0)
        os.kill(worker, signal.SIGTERM)
        assert wait_for(worker, 10) == -signal.SIGTERM
        assert signals.received is None
    finally:
        signals.uninstall()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize(("hook", "step", "saved"), [("on_train_batch_end", 6, 6), ("on_validation_batch_start", 4, 4)])
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_of_two_ranks_stops_both_at_the_same_step(tmp_path, hook, step, saved, told):
    port = free_port()

    def rank(number: int) -> None:
        os.environ |= {
            "LOCAL_RANK": str(number),
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "GLOO_SOCKET_IFNAME": "lo",
        }
        told_here = [At(hook, step, send(signal.SIGTERM))] if number == told else []
        train(tmp_path, *told_here, ResumeCheckpoint(every_n_steps=3), devices=2, strategy="ddp")

    children = [in_child(lambda number=number: rank(number)) for number in (0, 1)]
    assert [wait_for(child) for child in children] == [143, 143]
    path = newest_checkpoint(tmp_path)
    assert checkpoint_step(path) == saved
    state = torch.load(path, weights_only=True)["babelscope_resume"]
    assert len(state["rng"]) == 2


# full disks ----------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}


@pytest.mark.parametrize("place", ["write", "fsync", "manifest"])
def test_a_full_disk_during_a_checkpoint_leaves_training_and_old_files_intact(
    tmp_path, whole, monkeypatch, caplog, place
):
    full = OSError(errno.ENOSPC, "No space left on device")
    before: dict[str, bytes] = {}

    def fill() -> None:
        before.update(contents(tmp_path))

        def refuse(*args: Any) -> None:
            raise full

        if place == "write":
            monkeypatch.setattr(HashingFile, "write", refuse)
        elif place == "fsync":
            monkeypatch.setattr("babelscope.files.os.fsync", refuse)
        else:
            monkeypatch.setattr("callbacks.checkpoint_io.write_json", refuse)

    def empty() -> None:
        monkeypatch.undo()
        after = contents(tmp_path)
        assert {name: after[name] for name in before} == before
        assert not [name for name in after if name.endswith(".tmp")]
        assert checkpoint_step(newest_checkpoint(tmp_path)) == 3

    saver = ResumeCheckpoint(every_n_steps=3)
    with caplog.at_level(logging.ERROR, "callbacks.resume"):
        trained = train(tmp_path, At("on_train_batch_end", 4, fill), At("on_train_batch_end", 8, empty), saver)
    assert saver.failures == 1
    assert "step 6: checkpoint not written, [Errno 28] No space left on device; older ones" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), trained.parameters(), strict=True))
    assert [checkpoint_step(path) for path in find_checkpoints(tmp_path)] == [12, 9]
    assert all(find_damage(path) is None for path in find_checkpoints(tmp_path))


def test_a_real_limit_of_the_filesystem_is_survived(tmp_path, whole):
    """A file that cannot grow (RLIMIT_FSIZE) fails inside torch.save, as on a full disk."""

    def limited() -> None:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

        saver = ResumeCheckpoint(every_n_steps=3)
        trained = train(tmp_path, At("on_train_batch_end", 4, limit), saver)
        same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), trained.parameters(), strict=True))
        raise SystemExit(saver.failures if same else 90)

    assert wait_for(in_child(limited)) == 3  # steps 6, 9 and the end
    assert [checkpoint_step(path) for path in find_checkpoints(tmp_path)] == [3]
    assert find_damage(checkpoint_file(tmp_path, 3)) is None
    assert sorted(contents(tmp_path)) == ["step_00000003.ckpt", "step_00000003.json"]


def test_a_full_disk_at_a_signal_still_stops_and_names_what_is_left(tmp_path, monkeypatch, caplog):
    def fill_and_tell() -> None:
        monkeypatch.setattr(
            "babelscope.files.os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, ""))
        )
        send(signal.SIGTERM)()

    with pytest.raises(StoppedBySignal):
        train(tmp_path, At("on_train_batch_end", 5, fill_and_tell), ResumeCheckpoint(every_n_steps=3))
    assert "goes on from step 3" in caplog.text


def test_the_readme_names_tests_that_exist():
    folder = Path(__file__).parents[1]
    text = (folder / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]*test_\w+\.py)::(test_\w+)`", text)
    assert len(re.findall(r"^\| \d+ \|", text, re.MULTILINE)) == 21
    assert len(named) > 40
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (folder / file).read_text("utf-8")]
    assert missing == []
