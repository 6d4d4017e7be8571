"""A training that stands still says where, is saved if its step ends after all, and ends with a code of its own."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from callbacks import watchdog
from callbacks.checkpoint_io import checkpoint_step, newest_checkpoint
from callbacks.resume import ResumeCheckpoint
from callbacks.watchdog import EXIT_CODE, Watchdog
from tests.callbacks.forked import in_child


class Network(pl.LightningModule):
    def __init__(self, stand_still: Callable[[], Any], at: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, 1)
        self.stand_still, self.at = stand_still, at

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == self.at:
            self.stand_still()
        loss: torch.Tensor = self.layer(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def train(folder: Path, dog: Watchdog, stand_still: Callable[[], Any] = lambda: None, at: int = -1) -> Network:
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_steps=6,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[dog, ResumeCheckpoint(every_n_steps=2)],
    )
    blocks = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
    module, start = Network(stand_still, at), newest_checkpoint(folder)

    class FromStep:
        def __len__(self) -> int:
            return len(blocks)

        def __iter__(self) -> Iterator[list[int]]:
            yield from ([step] for step in range(trainer.global_step, len(blocks)))

    loader = DataLoader(blocks, batch_sampler=FromStep())  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=start, weights_only=True if start else None)
    return module


def exit_code_of(function: Callable[[], object]) -> int:
    """In a forked process that ends as a program would."""
    return os.waitstatus_to_exitcode(os.waitpid(in_child(function), 0)[1])


def hang() -> None:
    time.sleep(60)


def test_a_hang_is_dumped_and_ends_with_a_code_of_its_own(tmp_path: Path) -> None:
    dog = Watchdog(seconds=0.5, grace_seconds=0.3)
    assert exit_code_of(lambda: train(tmp_path, dog, hang, at=3)) == EXIT_CODE == 142
    text = (tmp_path / "stacks" / "rank_0.txt").read_text()
    assert "no progress for 0.5 seconds" in text
    assert f'File "{__file__}", line {hang.__code__.co_firstlineno + 1} in hang' in text
    start = newest_checkpoint(tmp_path)
    assert start is not None
    assert checkpoint_step(start) == 2  # of the step before: nothing is saved from the midst of one


def test_a_slow_step_that_ends_is_saved_and_the_run_goes_on_the_same(tmp_path: Path) -> None:
    calm = train(tmp_path / "calm", Watchdog())
    folder = tmp_path / "slow"
    dog = Watchdog(seconds=0.5, grace_seconds=60)
    assert exit_code_of(lambda: train(folder, dog, lambda: time.sleep(1), at=2)) == EXIT_CODE
    start = newest_checkpoint(folder)
    assert start is not None
    assert checkpoint_step(start) == 3
    torch.testing.assert_close(train(folder, Watchdog()).state_dict(), calm.state_dict(), rtol=0, atol=0)


def test_native_code_that_holds_the_interpreter_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LAST_RESORT", 0.3)
    dog = Watchdog(seconds=0.3, grace_seconds=0.3)
    assert exit_code_of(lambda: train(tmp_path, dog, lambda: ctypes.PyDLL(None).sleep(60), at=3)) == 1
    assert "in training_step" in (tmp_path / "stacks" / "rank_0.txt").read_text()


def test_a_training_that_moves_is_left_alone(tmp_path: Path) -> None:
    armed = faulthandler.is_enabled()
    train(tmp_path, Watchdog(seconds=0.5), lambda: time.sleep(0.2), at=3)
    assert list((tmp_path / "stacks").iterdir()) == []
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}
    assert faulthandler.is_enabled() is armed


def test_nothing_watches_a_process_whose_training_had_nothing_left_to_do(tmp_path: Path) -> None:
    train(tmp_path, Watchdog())
    train(tmp_path, Watchdog())
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}, (
        "it would end a notebook in half an hour"
    )


def test_a_full_disk_does_not_keep_a_slow_step_from_being_stopped_and_saved(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "rank_0.txt").symlink_to("/dev/full")
    dog = Watchdog(seconds=0.5, grace_seconds=60)
    assert exit_code_of(lambda: train(tmp_path, dog, lambda: time.sleep(1), at=2)) == EXIT_CODE
    start = newest_checkpoint(tmp_path)
    assert start is not None
    assert checkpoint_step(start) == 3


def test_a_training_ends_well_though_its_stacks_were_cleared_away(tmp_path: Path) -> None:
    train(tmp_path, Watchdog(), lambda: shutil.rmtree(tmp_path / "stacks"), at=3)
    start = newest_checkpoint(tmp_path)
    assert start is not None
    assert checkpoint_step(start) == 6


@pytest.mark.parametrize("option", ["seconds", "grace_seconds"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        Watchdog(**{option: value})
