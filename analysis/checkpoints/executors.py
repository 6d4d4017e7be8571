"""Where the tasks of a sweep run: here, in processes of this machine, or as jobs of a cluster.

One task is one checkpoint and leaves its results on disk, so an executor needs no queue of its own that could be lost:
what did not finish is what the next sweep finds missing.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from analysis.checkpoints.sweep import Listener, Outcome, Task
from babelscope.errors import one_line

logger = logging.getLogger(__name__)


class Executor(ABC):
    """Runs tasks and yields an outcome for every one of them, in the order in which they end."""

    @abstractmethod
    def run(self, tasks: Sequence[Task], listener: Listener | None = None) -> Iterator[Outcome]:
        """`listener` hears of every finished analysis where the executor can tell before the task ends."""


@dataclass(kw_only=True)
class Inline(Executor):
    """One task after the other in this process, the next checkpoint being downloaded meanwhile."""

    prefetch: bool = True
    """Download one checkpoint ahead in a thread, if the source's disk budget has room for two."""

    def run(self, tasks: Sequence[Task], listener: Listener | None = None) -> Iterator[Outcome]:
        waiting = deque(tasks)
        deferred = 0
        with ThreadPoolExecutor(max_workers=1) as thread:
            while waiting:
                task = waiting.popleft()
                ahead = thread.submit(waiting[0].prefetch) if self.prefetch and waiting else None
                outcome = task.run(wait=deferred > len(waiting), listener=listener)
                if ahead is not None:
                    ahead.result()
                if outcome.busy:
                    waiting.append(task)
                    deferred += 1
                else:
                    deferred = 0
                    yield outcome


@dataclass(kw_only=True)
class ProcessPool(Executor):
    """Several checkpoints at a time, each in a process of its own: memory is surely freed, a crash costs one task."""

    workers: int = 2
    """Tasks at a time. With `devices` at least as many as there are devices."""
    devices: list[str] = field(default_factory=list)
    """Devices dealt out to the workers, e.g. [cuda:0, cuda:1]; each task has its whole checkpoint on one of them."""
    start_method: Literal["forkserver", "spawn", "fork"] = "forkserver"

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; at least 1 is needed")
        self.workers = max(self.workers, len(self.devices))

    def run(self, tasks: Sequence[Task], listener: Listener | None = None) -> Iterator[Outcome]:
        context: Any = multiprocessing.get_context(self.start_method)
        if self.start_method == "forkserver":
            context.set_forkserver_preload(["analysis.checkpoints.sweep", "analysis.checkpoints.loading"])
        waiting, free = deque(tasks), deque(range(self.workers))
        running: dict[Connection, tuple[multiprocessing.process.BaseProcess, Task, int]] = {}
        try:
            while waiting or running:
                while waiting and free:
                    slot, task = free.popleft(), waiting.popleft()
                    device = self.devices[slot % len(self.devices)] if self.devices else None
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_work, args=(self._threads(), theirs), daemon=True)
                    process.start()
                    theirs.close()
                    with suppress(BrokenPipeError):  # it died already, which `_receive` says
                        ours.send(task if device is None else task.on_device(device))
                    running[ours] = (process, task, slot)
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    process, task, slot = running.pop(ready)
                    outcome = _receive(ready, process, task)
                    free.append(slot)
                    yield outcome
        finally:
            for process, _, _ in running.values():
                process.terminate()

    def _threads(self) -> int:
        return max(1, (os.cpu_count() or 1) // self.workers)


@dataclass(kw_only=True)
class Submitit(Executor):
    """Jobs of a SLURM cluster through submitit, as one job array; `local` and `debug` run the same code without one."""

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    folder: Path = Path("submitit")
    """Logs and job files, on a file system that all nodes share."""
    max_parallel: int = 16
    """Jobs at a time."""
    timeout_min: int = 240
    partition: str | None = None
    gpus_per_node: int | None = 1
    cpus_per_task: int = 8
    mem_gb: int | None = 64
    slurm_options: dict[str, str | int] = field(default_factory=dict)
    """Further sbatch options by their submitit names, e.g. {account: lab, constraint: a100}."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the task, e.g. [module load cuda]."""

    def __post_init__(self) -> None:
        if self.max_parallel < 1:
            raise ValueError(f"max_parallel is {self.max_parallel}; at least 1 is needed")

    def run(self, tasks: Sequence[Task], listener: Listener | None = None) -> Iterator[Outcome]:
        if not tasks:
            return
        executor = self._executor()
        # submitit's local executor starts everything at once, so it gets the tasks in waves.
        wave = self.max_parallel if self.cluster != "slurm" else len(tasks)
        for start in range(0, len(tasks), wave):
            part = tasks[start : start + wave]
            jobs = executor.map_array(Task.run, part)
            logger.info("submitted %d jobs, logs in %s", len(jobs), self.folder)
            for job, task in zip(jobs, part, strict=True):
                try:
                    yield job.result()
                except Exception as error:
                    yield _lost(task, f"job {job.job_id} ended without a result ({one_line(error)}), see {self.folder}")

    def _executor(self) -> Any:
        import submitit

        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        except RuntimeError as error:
            raise ValueError(f"executor: cluster {self.cluster!r}: {one_line(error)}") from None
        executor.update_parameters(timeout_min=self.timeout_min, name="babelscope", cpus_per_task=self.cpus_per_task)
        if self.cluster == "slurm":
            options = {
                "slurm_array_parallelism": self.max_parallel,
                "slurm_setup": self.setup or None,
                "slurm_partition": self.partition,
                "gpus_per_node": self.gpus_per_node,
                "mem_gb": self.mem_gb,
                "slurm_additional_parameters": dict(self.slurm_options),
            }
            executor.update_parameters(**{name: option for name, option in options.items() if option is not None})
        return executor


def _work(threads: int, connection: Connection) -> None:
    """Body of a worker process: a task comes in, an outcome goes out, or in words what went wrong on the way."""
    try:
        import torch
        from transformers.utils.logging import disable_progress_bar

        torch.set_num_threads(threads)
        disable_progress_bar()
        connection.send(connection.recv().run())
    except Exception as error:
        connection.send(f"its process failed ({type(error).__name__}: {one_line(error)})")
    finally:
        connection.close()


def _receive(connection: Connection, process: multiprocessing.process.BaseProcess, task: Task) -> Outcome:
    try:
        outcome: Outcome | str = connection.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        code = process.exitcode or 0
        if code < 0:
            return _lost(task, f"its process was killed by signal {-code} (out of memory?)")
        return _lost(task, f"its process ended with exit code {code} before it began; its own message stands above")
    process.join()
    return _lost(task, outcome) if isinstance(outcome, str) else outcome


def _lost(task: Task, why: str) -> Outcome:
    return Outcome(step=task.checkpoint.id.step, label=task.label, failed={"checkpoint": why})
