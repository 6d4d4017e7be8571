"""The level of nothing: random networks of the configuration that is measured, a handful for a run or a suite.

Step 0 of one seed is one draw, and two random networks differ by as much as early training changes. So the measures
that say so (`Analysis.needs_null`) are taken once on several networks with other initial weights, on the same texts:

    <results>/null_0/step_00000000/overlap.parquet      and null_1 ... null_4

`ResultTable.null_band` reads them, `analysis.report.changes` holds a network against them.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from analysis.base import Analysis
from analysis.checkpoints.options import release
from analysis.results import ResultTable, null_folder
from analysis.snapshots import Snapshot, SnapshotId

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from babelscope.records import Clone

log = logging.getLogger(__name__)

NUM_NETWORKS = 5
FIRST_SEED = 1000
"""Of the random networks: far from the small seeds that people train with, so that none is the run's own start."""


@dataclass(frozen=True)
class Mould:
    """What random networks of a model are drawn from: no weights, so that the model itself may be gone by then."""

    run: str
    network: Callable[[PretrainedConfig], PreTrainedModel]
    """The class of the model."""
    config: PretrainedConfig
    dtype: torch.dtype
    place: Callable[[PreTrainedModel], PreTrainedModel]
    """Puts a network in main memory where it is measured."""
    shape: str
    """Short hash of the class and of the shapes of all parameters."""
    tokenizer: PreTrainedTokenizerBase
    clones: Mapping[str, Clone]

    @classmethod
    def of(cls, snapshot: Snapshot, place: Callable[[PreTrainedModel], PreTrainedModel] | None = None) -> Mould:
        """That of the snapshot's model; without `place` networks go to the device of that model as a whole."""
        from analysis.extraction.options import input_device  # planning a sweep waits for no heavy import

        model = snapshot.model
        shapes = [(key, tuple(value.shape)) for key, value in model.named_parameters()]
        return cls(
            run=snapshot.id.run,
            network=type(model),
            config=copy.deepcopy(model.config),
            dtype=model.dtype,
            place=place or partial(_move, device=input_device(model)),
            shape=hashlib.sha256(f"{type(model).__name__} {shapes}".encode()).hexdigest()[:16],
            tokenizer=snapshot.tokenizer,
            clones=snapshot.clones,
        )

    def draw(self, seed: int) -> Snapshot:
        """A network of the same class and configuration with weights as its class initialises them, as step 0."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = self.network(copy.deepcopy(self.config))
        drawn = self.place(torch.nn.Module.to(drawn, dtype=self.dtype)).eval()
        return Snapshot(SnapshotId(self.run, 0, 0), drawn, self.tokenizer, clones=self.clones)


def _move(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    import torch

    return torch.nn.Module.to(model, device=device)


def missing_null(
    results: Path,
    run: str,
    analyses: Sequence[Analysis],
    count: int,
    marks: Mapping[str, str | None],
    *,
    force: bool = False,
) -> list[tuple[int, list[Analysis]]]:
    """Numbers of the random networks that are not measured yet, and by which analyses. `marks` are what a stamp must
    agree with where it says it: how checkpoints are read (`CheckpointSource.reading`), and the `shape` of the model
    where it is known, since one that bore the run's name before has other networks. With `force` none counts."""
    found = []
    for number in range(count):
        table = ResultTable(null_folder(results, number))
        lacking = [one for one in analyses if one.needs_null and (force or not _has(table, run, one, marks))]
        if lacking:
            found.append((number, lacking))
    return found


def _has(table: ResultTable, run: str, analysis: Analysis, marks: Mapping[str, str | None]) -> bool:
    """Whether the random network of `table` was measured; before 2026-11-26 results did not say their marks."""
    stamp = table.stamp(0, analysis.name) or {}
    agrees = all(stamp.get(key, value) == value for key, value in marks.items())
    return agrees and table.has(SnapshotId(run, 0, 0), analysis)


def measure_null(
    mould: Mould,
    analyses: Sequence[Analysis],
    results: Path,
    count: int,
    marks: Mapping[str, str | None],
    *,
    force: bool = False,
) -> list[str]:
    """Measure `count` random networks where that was not done, or all with `force`; returns what was measured. They are
    stamped with `marks`, as the results that are held against them.

    Processes that share a results folder wait for each other, one network at a time.
    """
    done: list[str] = []
    marks = {**marks, "shape": mould.shape}
    for number, lacking in missing_null(results, mould.run, analyses, count, marks, force=force):
        folder = null_folder(results, number)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            table = ResultTable(folder)
            network: Snapshot | None = None
            for analysis in lacking:
                if not force and _has(table, mould.run, analysis, marks):
                    continue
                network = network or mould.draw(FIRST_SEED + number)
                started = time.perf_counter()
                measured = list(analysis.measure(network))
                about = {**marks, "seed": FIRST_SEED + number}
                table.write(network.id, analysis, measured, time.perf_counter() - started, about)
                done.append(f"{analysis.name}, random network {number}")
                log.info("measured: %s", done[-1])
            del network
        release()
    return done
