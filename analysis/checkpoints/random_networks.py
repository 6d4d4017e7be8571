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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from analysis.base import Analysis
from analysis.results import ResultTable, null_folder
from analysis.snapshots import Snapshot, SnapshotId

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

NUM_NETWORKS = 5
FIRST_SEED = 1000
"""Of the random networks: far from the small seeds that people train with, so that none is the run's own start."""


def random_network(snapshot: Snapshot, seed: int) -> Snapshot:
    """A network of the same class and configuration with weights as its class initialises them, as step 0."""
    import torch  # as in the whole folder: planning a sweep waits for no heavy import

    from analysis.extraction.options import input_device

    model = snapshot.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = type(model)(copy.deepcopy(model.config))
    drawn = torch.nn.Module.to(drawn, device=input_device(model), dtype=model.dtype).eval()
    start = SnapshotId(snapshot.id.run, 0, 0)
    return replace(snapshot, id=start, model=drawn, replicas=(), shared={})


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


def shape_of(model: PreTrainedModel) -> str:
    """Short hash of the class and of the shapes of all parameters."""
    shapes = [(key, tuple(value.shape)) for key, value in model.named_parameters()]
    return hashlib.sha256(f"{type(model).__name__} {shapes}".encode()).hexdigest()[:16]


def _has(table: ResultTable, run: str, analysis: Analysis, marks: Mapping[str, str | None]) -> bool:
    """Whether the random network of `table` was measured; before 2026-11-26 results did not say their marks."""
    stamp = table.stamp(0, analysis.name) or {}
    agrees = all(stamp.get(key, value) == value for key, value in marks.items())
    return agrees and table.has(SnapshotId(run, 0, 0), analysis)


def measure_null(
    snapshot: Snapshot,
    analyses: Sequence[Analysis],
    results: Path,
    count: int,
    marks: Mapping[str, str | None],
    *,
    force: bool = False,
) -> list[str]:
    """Measure `count` random networks of the snapshot's configuration where that was not done, or all with `force`;
    returns what was measured. They are stamped with `marks`, as the results that are held against them.

    Processes that share a results folder wait for each other, one network at a time.
    """
    done: list[str] = []
    marks = {**marks, "shape": shape_of(snapshot.model)}
    for number, lacking in missing_null(results, snapshot.id.run, analyses, count, marks, force=force):
        folder = null_folder(results, number)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            table = ResultTable(folder)
            network: Snapshot | None = None
            for analysis in lacking:
                if not force and _has(table, snapshot.id.run, analysis, marks):
                    continue
                network = network or random_network(snapshot, FIRST_SEED + number)
                started = time.perf_counter()
                measured = list(analysis.measure(network))
                about = {**marks, "seed": FIRST_SEED + number}
                table.write(network.id, analysis, measured, time.perf_counter() - started, about)
                done.append(f"{analysis.name}, random network {number}")
                log.info("measured: %s", done[-1])
            del network
    return done
