"""Two trainings never share a folder, and a dead one never keeps it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel

from callbacks.lock import LOCK_FILE, RunLock, lock_folder


@pytest.fixture
def holder(tmp_path) -> Iterator[Callable[..., tuple[int, int]]]:
    """`holder()` forks a process that holds the lock of `tmp_path`, and a data worker of it; returns both ids."""
    started: list[int] = []

    def start() -> tuple[int, int]:
        told, tell = os.pipe()
        process = os.fork()
        if process == 0:
            lock = lock_folder(tmp_path)
            assert lock.is_locked
            if os.fork() == 0:
                os.write(tell, str(os.getpid()).encode())
            time.sleep(120)
            os._exit(0)
        started.append(process)
        worker = int(os.read(told, 100))
        started.append(worker)
        os.close(told)
        os.close(tell)
        return process, worker

    yield start
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    lock = lock_folder(folder)
    yield
    lock.release()


def trainer_in(folder: Path) -> pl.Trainer:
    return pl.Trainer(
        max_steps=1,
        callbacks=[RunLock()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        accelerator="cpu",
    )


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path, holder):
    process, _ = holder()
    expected = rf"{tmp_path}: in use by process {process} on {socket.gethostname()} since .*choose another run folder"
    with pytest.raises(ValueError, match=expected) as caught:
        lock_folder(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=expected):
        trainer_in(tmp_path).fit(BoringModel())


def test_a_killed_holder_does_not_block_even_if_its_data_worker_lives_on(tmp_path, holder):
    process, worker = holder()
    with pytest.raises(ValueError, match=f"process {process} "):
        lock_folder(tmp_path)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.kill(worker, 0)  # still there
    assert (tmp_path / LOCK_FILE).is_file()
    with holding(tmp_path):
        pass


def test_a_worker_that_ends_does_not_take_the_lock_along(tmp_path):
    with holding(tmp_path):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        with pytest.raises(ValueError, match=f"process {os.getpid()} "):
            lock_folder(tmp_path)


def test_the_lock_is_given_back_and_can_be_taken_again(tmp_path):
    first = lock_folder(tmp_path / "new" / "run")
    with pytest.raises(ValueError, match="in use"):
        lock_folder(tmp_path / "new" / "run")
    first.release()
    first.release()
    with holding(tmp_path / "new" / "run"):
        pass


def test_an_unreadable_holder_still_blocks(tmp_path):
    with holding(tmp_path):
        (tmp_path / LOCK_FILE).write_text("no json")
        with pytest.raises(ValueError, match="in use by another process"):
            lock_folder(tmp_path)


def test_a_filesystem_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with holding(tmp_path):
        pass
    assert "has no locks" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_a_training_gives_the_folder_back_when_it_ends_or_fails(tmp_path, fails):
    class Checks(BoringModel):
        def training_step(self, batch, batch_idx):
            with pytest.raises(ValueError, match="in use"):
                lock_folder(tmp_path)
            if fails:
                raise RuntimeError("planted")
            return super().training_step(batch, batch_idx)

    if fails:
        with pytest.raises(RuntimeError, match="planted"):
            trainer_in(tmp_path).fit(Checks())
    else:
        trainer_in(tmp_path).fit(Checks())
    with holding(tmp_path):
        pass


def test_an_error_is_told_though_the_folder_was_cleared_away(tmp_path):
    class Clears(BoringModel):
        def training_step(self, batch, batch_idx):
            shutil.rmtree(tmp_path / "run")
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        trainer_in(tmp_path / "run").fit(Clears())


def test_looking_at_a_run_needs_no_lock(tmp_path):
    model = BoringModel()
    with holding(tmp_path):
        trainer = trainer_in(tmp_path)
        trainer.limit_val_batches = 1
        trainer.validate(model, verbose=False)
    assert torch.is_grad_enabled()
