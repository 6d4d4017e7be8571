"""Resume is exact, takes the newest checkpoint that verifies, and refuses what would not be the same training.

The training here is a stand-in: a network with dropout, data as a function of (seed, step) as in the real data module,
epochs of seven batches, validation inside and at the end of epochs. Whatever is logged is kept by step in `history`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from callbacks.checkpoint_io import (
    DurableCheckpointIO,
    find_checkpoints,
    find_damage,
    load_checkpoint,
    newest_checkpoint,
)
from callbacks.resume import ResumeCheckpoint
from callbacks.rng import capture_rng, restore_rng
from callbacks.signals import StoppedBySignal
from callbacks.snapshots import checkpoint_file, manifest_file

BATCHES = 7


class Blocks(Dataset):
    """Block i holds numbers drawn with seed i, so a batch is a function of its index whatever the worker."""

    def __len__(self):
        return BATCHES * 4

    def __getitem__(self, index):
        return torch.randn(6, generator=torch.Generator().manual_seed(index))


class FromStep:
    """Batches of the current epoch, from the one that the trainer's step calls for."""

    def __init__(self, trainer):
        self.trainer = trainer

    def __len__(self):
        return BATCHES

    def __iter__(self):
        accumulate = self.trainer.accumulate_grad_batches
        steps_per_epoch = -(-BATCHES // accumulate)
        epoch, step = divmod(self.trainer.global_step, steps_per_epoch)
        order = torch.randperm(4 * BATCHES, generator=torch.Generator().manual_seed(epoch)).view(BATCHES, 4)
        yield from order[step * accumulate :].tolist()


class Data(pl.LightningDataModule):
    def __init__(self, workers=0):
        super().__init__()
        self.workers = workers

    def train_dataloader(self):
        return DataLoader(Blocks(), batch_sampler=FromStep(self.trainer), num_workers=self.workers)

    def val_dataloader(self):
        return [DataLoader(Blocks(), batch_size=8), DataLoader(Blocks(), batch_size=12)]


class Network(pl.LightningModule):
    def __init__(self, history):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 1))
        self.history = history
        self.noise = 0.0

    def training_step(self, batch, batch_idx):
        # Dropout draws from torch; these two from the other generators, as augmentation code would.
        scale = 1 + 0.01 * random.random() + 0.01 * np.random.rand()
        loss = (self.layers(batch) * scale - batch.sum(1, keepdim=True)).square().mean()
        self.history.setdefault(("train", self.trainer.global_step), []).append(loss.item())
        return loss

    def on_validation_epoch_start(self):
        self.losses = []

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        noisy = self.layers(batch + 0.1 * torch.randn_like(batch))
        self.losses.append((noisy - batch.sum(1, keepdim=True)).square().mean().item())

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.history.setdefault(("val", self.trainer.global_step), []).append(tuple(self.losses))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class KilledError(Exception):
    pass


class KillAt(pl.Callback):
    """Dies at the n-th batch of the process, at the given hook: nothing after that is run, as with a kill."""

    def __init__(self, hook, count):
        self.left = count
        setattr(self, hook, self._count)

    def _count(self, trainer, *args, **kwargs):
        if trainer.sanity_checking:
            return
        self.left -= 1
        if self.left == 0:
            raise KilledError


class LoggerSteps(pl.loggers.Logger):
    """Keeps the steps at which Lightning logs."""

    name, version = "steps", "0"

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step):
        self.steps.append(step)


def make_trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    defaults = {
        "max_steps": 12,
        "max_epochs": -1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "val_check_interval": 3,
        "use_distributed_sampler": False,
        "gradient_clip_val": 1.0,
    }
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(defaults | options))


def train(folder: Path, history: dict, *, saver: ResumeCheckpoint | None, killer=None, data=None, **options: Any):
    """One life of a run: from the newest checkpoint to the end, or to the kill. Returns the module, None if killed."""
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    module = Network(history)
    callbacks = [callback for callback in (killer, saver) if callback is not None]
    trainer = make_trainer(folder, *callbacks, enable_checkpointing=saver is not None, **options)
    start = newest_checkpoint(folder)
    try:
        trainer.fit(module, datamodule=data or Data(), ckpt_path=start, weights_only=True if start else None)
    except KilledError:
        return None
    return module


def assert_same(expected: dict, expected_module: nn.Module, history: dict, module: nn.Module) -> None:
    """No step is missing, every loss of every life equals the uninterrupted one's, and so do the final weights."""
    assert history.keys() == expected.keys()
    for key, losses in history.items():
        last = expected[key]
        assert losses[-len(last) :] == last, key
        for life in split_lives(losses[: -len(last)], last):
            assert life == last[: len(life)], key
    for name, tensor in expected_module.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name]), name


def split_lives(losses: list, last: list) -> list[list]:
    """The losses that earlier lives saw at one step; each life starts with the first micro-batch."""
    starts = [index for index, loss in enumerate(losses) if loss == last[0]] + [len(losses)]
    assert not losses or starts[0] == 0
    return [losses[begin:end] for begin, end in pairwise(starts)]


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end", "on_before_zero_grad"])
@pytest.mark.parametrize(("accumulate", "check"), [(1, {}), (3, {}), (2, {"check_val_every_n_epoch": None})])
def test_a_resumed_run_equals_an_uninterrupted_one_wherever_it_is_killed(tmp_path, hook, accumulate, check):
    options = {"accumulate_grad_batches": accumulate, "max_steps": 9} | check
    expected: dict = {}
    whole = train(tmp_path / "whole", expected, saver=None, **options)
    for kill in count(1, accumulate + 1):
        history: dict = {}
        folder = tmp_path / f"{kill}"
        if train(folder, history, saver=ResumeCheckpoint(every_n_steps=2), killer=KillAt(hook, kill), **options):
            break  # it came to its end before the kill
        module = train(folder, history, saver=ResumeCheckpoint(every_n_steps=2), **options)
        assert_same(expected, whole, history, module)
    assert kill > 8


def test_a_run_killed_again_and_again_equals_an_uninterrupted_one(tmp_path):
    expected: dict = {}
    whole = train(tmp_path / "whole", expected, saver=None, max_steps=20)
    history: dict = {}
    module, lives = None, 0
    while module is None:
        lives += 1
        assert lives < 40, "no life gets further than the one before"
        killer = KillAt("on_train_batch_end", 2)
        module = train(tmp_path / "run", history, saver=ResumeCheckpoint(every_n_steps=1), killer=killer, max_steps=20)
    assert lives > 10
    assert_same(expected, whole, history, module)


@pytest.mark.parametrize("kill", [4, 7, 8])
def test_resume_is_exact_with_data_workers(tmp_path, kill):
    expected: dict = {}
    whole = train(tmp_path / "whole", expected, saver=None, data=Data(workers=0), max_steps=10)
    history: dict = {}
    killer = KillAt("on_train_batch_end", kill)
    saver = ResumeCheckpoint(every_n_steps=3)
    assert train(tmp_path / "run", history, saver=saver, killer=killer, data=Data(workers=2), max_steps=10) is None
    module = train(tmp_path / "run", history, saver=ResumeCheckpoint(), data=Data(workers=2), max_steps=10)
    assert_same(expected, whole, history, module)


@pytest.mark.parametrize("kill", [1, 2, 6, 9, 13, 17])
def test_a_validation_cut_short_is_done_again(tmp_path, kill):
    expected: dict = {}
    whole = train(tmp_path / "whole", expected, saver=None)
    history: dict = {}
    killer = KillAt("on_validation_batch_start", kill)
    assert train(tmp_path / "run", history, saver=ResumeCheckpoint(every_n_steps=1), killer=killer) is None
    module = train(tmp_path / "run", history, saver=ResumeCheckpoint(every_n_steps=1))
    assert_same(expected, whole, history, module)


class TellAt(KillAt):
    """Is told to stop there instead."""

    def _count(self, *args, **kwargs):
        with contextlib.suppress(KilledError):
            super()._count(*args, **kwargs)
        if self.left == 0:
            self.left = -1
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_during_a_validation_in_the_midst_of_a_step_is_saved_at_its_end(tmp_path):
    options = {"accumulate_grad_batches": 2, "max_steps": 9}  # validated after 3 micro-batches
    expected: dict = {}
    whole = train(tmp_path / "whole", expected, saver=None, **options)
    history: dict = {}
    teller = TellAt("on_validation_batch_start", 2)
    with pytest.raises(StoppedBySignal):
        train(tmp_path / "run", history, saver=ResumeCheckpoint(), killer=teller, **options)
    assert steps_of(tmp_path / "run") == [2]
    module = train(tmp_path / "run", history, saver=ResumeCheckpoint(), **options)
    assert_same(expected, whole, history, module)


def test_logger_steps_go_on_without_a_gap_or_a_repetition(tmp_path):
    def fit(folder, saver, killer=None):
        logger = LoggerSteps()
        module = Network({})
        module.on_train_batch_end = lambda *args: module.log("x", 1.0)
        callbacks = [callback for callback in (killer, saver) if callback]
        trainer = make_trainer(folder, *callbacks, logger=logger, log_every_n_steps=1, accumulate_grad_batches=2)
        start = newest_checkpoint(folder)
        with contextlib.suppress(KilledError):
            trainer.fit(module, datamodule=Data(), ckpt_path=start, weights_only=True if start else None)
        return logger.steps

    whole = fit(tmp_path / "whole", ResumeCheckpoint())
    for kill in (9, 12, 13):
        folder = tmp_path / f"{kill}"
        first = fit(folder, ResumeCheckpoint(every_n_steps=1), KillAt("on_train_batch_start", kill))
        second = fit(folder, ResumeCheckpoint())
        assert set(first) | set(second) == set(whole)
        assert second == [step for step in whole if step >= second[0]]
        assert second[0] <= max(first) + 1


def test_checkpointing_does_not_change_the_training(tmp_path):
    expected, history = {}, {}
    whole = train(tmp_path / "whole", expected, saver=None)
    module = train(tmp_path / "run", history, saver=ResumeCheckpoint(every_n_steps=1))
    assert history == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), module.parameters(), strict=True))


def test_a_finished_run_started_again_does_nothing(tmp_path):
    history: dict = {}
    train(tmp_path, history, saver=ResumeCheckpoint())
    losses = {key: list(values) for key, values in history.items()}
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    train(tmp_path, history, saver=ResumeCheckpoint())
    assert history == losses
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_callback_that_is_used_again_starts_the_next_run_afresh(tmp_path):
    expected, history = {}, {}
    train(tmp_path / "fresh", expected, saver=ResumeCheckpoint(), max_steps=4)
    saver = ResumeCheckpoint()
    for _ in range(2):  # the second start finds nothing to do
        train(tmp_path / "first", {}, saver=saver, max_steps=4)
    train(tmp_path / "next", history, saver=saver, max_steps=4)
    assert history == expected


# which checkpoints are written and kept ------------------------------------------------------------------------------


def steps_of(folder: Path) -> list[int]:
    return [int(path.stem[5:]) for path in find_checkpoints(folder)]


def test_the_newest_k_stay_each_with_its_manifest_and_snapshots_are_left_alone(tmp_path):
    snapshot = tmp_path / "snapshots" / "step_00000001"
    snapshot.mkdir(parents=True)
    (snapshot / "snapshot.json").write_text("{}")
    train(tmp_path, {}, saver=ResumeCheckpoint(every_n_steps=2, keep=3), max_steps=11)
    assert steps_of(tmp_path) == [11, 10, 8]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(
        f"step_{step:08d}.{suffix}" for step in (8, 10, 11) for suffix in ("ckpt", "json")
    )
    assert (snapshot / "snapshot.json").is_file()


def test_without_rules_only_the_end_is_saved(tmp_path):
    train(tmp_path, {}, saver=ResumeCheckpoint(every_n_minutes=None))
    assert steps_of(tmp_path) == [12]


def test_minutes_count_from_the_last_checkpoint(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("callbacks.resume.time.monotonic", lambda: now[0])

    class Clock(pl.Callback):
        def on_train_batch_end(self, *args):
            now[0] += 60.0

    train(tmp_path, {}, saver=ResumeCheckpoint(every_n_minutes=5, keep=9), killer=Clock())
    assert steps_of(tmp_path) == [12, 10, 5]


def test_leftovers_of_a_killed_save_are_cleared_at_the_next_start(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".step_00000004.ckpt.123.tmp").write_bytes(b"half")
    train(tmp_path, {}, saver=ResumeCheckpoint())
    assert [path.name for path in folder.iterdir() if path.name.endswith(".tmp")] == []


def test_a_kill_while_saving_leaves_only_checkpoints_that_load(tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("TMPDIR", str(other))
    run_folder, torsos, step = tmp_path / "run", 0, 1
    draw = random.Random(0)
    for _ in range(8):
        saver = os.fork()
        if saver == 0:
            for number in range(step, step + 10_000):
                content = {"state_dict": {"x": torch.full((500_000,), float(number))}, "global_step": number}
                DurableCheckpointIO().save_checkpoint(content, checkpoint_file(run_folder, number))
            os._exit(1)
        time.sleep(draw.uniform(0.05, 0.2))
        os.kill(saver, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(saver, 0)[1]) == -signal.SIGKILL
        torsos += any(path.suffix == ".tmp" for path in (run_folder / "checkpoints").iterdir())
        for path in find_checkpoints(run_folder):
            assert find_damage(path) is None or not manifest_file(path).exists()
        newest = newest_checkpoint(run_folder)
        if newest is not None:
            content = load_checkpoint(newest)
            assert torch.equal(content["state_dict"]["x"], torch.full((500_000,), float(content["global_step"])))
            step = content["global_step"] + 1
    assert step > 8
    assert torsos > 0
    assert list(other.iterdir()) == []


# which checkpoint is taken -------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lose_manifest(path: Path) -> None:
    manifest_file(path).unlink()


def tear_manifest(path: Path) -> None:
    truncate(manifest_file(path))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(folder, {}, saver=ResumeCheckpoint(every_n_steps=4, keep=5))
    return folder


@pytest.fixture
def run_folder(finished_run, tmp_path) -> Path:
    """A copy of a run with checkpoints at steps 4, 8 and 12."""
    (tmp_path / "checkpoints").mkdir()
    for path in (finished_run / "checkpoints").iterdir():
        (tmp_path / "checkpoints" / path.name).write_bytes(path.read_bytes())
    assert steps_of(tmp_path) == [12, 8, 4]
    return tmp_path


DAMAGES: dict[Callable[[Path], None], str] = {
    truncate: "bytes",
    flip_a_bit: "does not match its SHA-256",
    empty: "it has 0 of",
    lose_manifest: "no manifest",
    tear_manifest: "manifest is damaged",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda function: function.__name__)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(run_folder, damage, caplog):
    damage(checkpoint_file(run_folder, 12))
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(run_folder) == checkpoint_file(run_folder, 8)
    messages = [record.message for record in caplog.records if record.name.startswith("callbacks")]
    assert len(messages) == 1
    assert messages[0].startswith(f"{checkpoint_file(run_folder, 12)}: passed over")
    assert DAMAGES[damage] in messages[0]


def test_the_run_goes_on_exactly_from_the_checkpoint_before_a_damaged_one(run_folder, tmp_path):
    expected: dict = {}
    whole = train(tmp_path / "whole", expected, saver=None)
    truncate(checkpoint_file(run_folder, 12))
    flip_a_bit(checkpoint_file(run_folder, 8))
    history: dict = {}
    module = train(run_folder, history, saver=ResumeCheckpoint(every_n_steps=4, keep=5))
    assert min(step for kind, step in history if kind == "train") == 4
    assert all(history[key] == expected[key] for key in history)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), module.parameters(), strict=True))
    assert newest_checkpoint(run_folder) == checkpoint_file(run_folder, 12)


def test_checkpoints_of_a_course_that_was_left_are_set_aside(run_folder, caplog):
    start = checkpoint_file(run_folder, 4)
    for path in (start, manifest_file(start)):
        path.rename(run_folder / path.name)
    trainer = make_trainer(run_folder, KillAt("on_train_batch_end", 1), ResumeCheckpoint(every_n_minutes=None))
    with pytest.raises(KilledError):
        trainer.fit(Network({}), datamodule=Data(), ckpt_path=run_folder / start.name, weights_only=True)
    assert newest_checkpoint(run_folder) == start, "not the one of step 12, to which another course has led"
    assert "step_00000012.ckpt: set aside as step_00000012.ckpt.left" in caplog.text
    assert (run_folder / "checkpoints" / "step_00000008.ckpt.left").is_file()


def test_a_manifest_of_a_file_that_is_no_checkpoint_does_not_help_it(run_folder):
    path = checkpoint_file(run_folder, 12)
    DurableCheckpointIO().save_checkpoint({"weights": torch.ones(3)}, path)
    assert newest_checkpoint(run_folder) == checkpoint_file(run_folder, 8)


def test_pickled_code_is_not_run(run_folder, tmp_path):
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (canary,))

    path = checkpoint_file(run_folder, 12)
    DurableCheckpointIO().save_checkpoint({"state_dict": {}, "bomb": Bomb()}, path)
    with pytest.raises(ValueError, match="the pickle holds more than tensors"):
        load_checkpoint(path)
    assert newest_checkpoint(run_folder) == checkpoint_file(run_folder, 8)
    assert not canary.exists()


def test_a_whole_file_without_manifest_is_the_last_resort(run_folder, caplog):
    for step in (4, 8):
        DurableCheckpointIO().remove_checkpoint(checkpoint_file(run_folder, step))
    lose_manifest(checkpoint_file(run_folder, 12))
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(run_folder) == checkpoint_file(run_folder, 12)
    assert "taken although it has no manifest" in caplog.text


def test_a_run_is_never_started_anew_over_damaged_checkpoints(run_folder):
    for step in (4, 8, 12):
        truncate(checkpoint_file(run_folder, step))
    with pytest.raises(ValueError, match=r"step_00000012.ckpt: it has .* no other checkpoint.*delete") as caught:
        newest_checkpoint(run_folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_checkpoints_starts_anew(tmp_path):
    assert newest_checkpoint(tmp_path / "nothing") is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step_00000004.ckpt.abc.tmp").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) is None


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"step_00000001.ckpt: no such checkpoint"):
        load_checkpoint(checkpoint_file(tmp_path, 1))


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"every_n_minutes": 0}, "every_n_minutes is 0"),
        ({"keep": 0}, "keep is 0"),
        ({"signals": ("SIGNOPE",)}, "'SIGNOPE' is no signal"),
        ({"signals": ("SIGKILL",)}, "SIGKILL cannot be handled"),
    ],
)
def test_nonsense_is_refused_by_name(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        ResumeCheckpoint(**options)


# the random state ----------------------------------------------------------------------------------------------------


def test_the_random_state_survives_a_file_that_holds_no_objects(tmp_path):
    def draw():
        return [torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1)]

    np.random.randn()  # leaves a second gaussian in NumPy's store, which must survive too
    random.gauss(0, 1)
    torch.save(capture_rng(), tmp_path / "rng.pt")
    expected = draw()
    assert draw() != expected
    restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draw() == expected


# the real thing ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "ranks"), [(1, 1), (2, 1), (1, 2)])
def test_real_trainings_killed_at_random_moments_lose_nothing(tmp_path, accumulate, ranks):
    """A few faults of the benchmark, which forks real `train fit` processes and kills, stops and pauses them."""
    path = Path(__file__).parents[1] / "benchmarks" / "kill_resume.py"
    spec = importlib.util.spec_from_file_location("kill_resume", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["kill_resume"] = script  # its dataclasses look themselves up there
    spec.loader.exec_module(script)
    outcome = script.run(4, tmp_path, max_steps=24, accumulate=accumulate, seed=accumulate, ranks=ranks)
    assert outcome.num_faults >= 4
    assert outcome.damaged == 0
    assert outcome.differences == []
