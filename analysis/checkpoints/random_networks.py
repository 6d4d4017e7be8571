"""The level of nothing: random networks of the configuration that is measured, a handful for a run or a suite.

Step 0 of one seed is one draw, and two random networks differ by as much as early training changes. So the measures
that say so (`Analysis.needs_null`) are taken once on several networks with other initial weights, on the same texts:

    <results>/null_0/step_00000000/overlap.parquet      and null_1 ... null_4

`ResultTable.null_band` reads them, `analysis.report.changes` holds a network against them.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from analysis.base import Analysis
from analysis.results import ResultTable, null_folder
from analysis.snapshots import Snapshot, SnapshotId

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


def missing_null(results: Path, run: str, analyses: Sequence[Analysis], count: int) -> list[tuple[int, list[Analysis]]]:
    """Numbers of the random networks that are not measured yet, and by which analyses."""
    start, found = SnapshotId(run, 0, 0), []
    for number in range(count):
        table = ResultTable(null_folder(results, number))
        lacking = [one for one in analyses if one.needs_null and not table.has(start, one)]
        if lacking:
            found.append((number, lacking))
    return found


def measure_null(
    snapshot: Snapshot, analyses: Sequence[Analysis], results: Path, count: int = NUM_NETWORKS
) -> list[str]:
    """Measure `count` random networks of the snapshot's configuration where that was not done; returns what was.

    Processes that share a results folder wait for each other, one network at a time.
    """
    done = []
    for number, lacking in missing_null(results, snapshot.id.run, analyses, count):
        folder = null_folder(results, number)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            table = ResultTable(folder)
            network: Snapshot | None = None
            for analysis in lacking:
                if table.has(SnapshotId(snapshot.id.run, 0, 0), analysis):
                    continue
                network = network or random_network(snapshot, FIRST_SEED + number)
                started = time.perf_counter()
                measured = list(analysis.measure(network))
                table.write(
                    network.id, analysis, measured, time.perf_counter() - started, {"seed": FIRST_SEED + number}
                )
                done.append(f"{analysis.name}, random network {number}")
                log.info("measured: %s", done[-1])
            del network
    return done
