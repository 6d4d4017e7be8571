"""Nothing is lost: a training killed with SIGKILL at random moments ends like one that was never interrupted.

    python tests/benchmarks/kill_resume.py --kills 50

Every life of a run is a process of its own (forked, so that the imports are paid once) that runs the real command
`train fit` on configs/train/smoke.yaml, made longer, with dropout, validation, snapshots, an analysis, metrics and a
checkpoint every other step. It is killed after a random time and started again with the same command until the run is
complete; then the next run begins, until there were enough kills. Compared with an uninterrupted run: the weights of
every snapshot and of the end (SHA-256), the result table, and every row of metrics.jsonl but its clock. Prints a
table; exits with 1 on any difference.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  (the repository must be importable first)

from analysis.results import ResultTable  # noqa: E402
from callbacks.checkpoint_io import checkpoint_step, find_damage, newest_checkpoint  # noqa: E402
from callbacks.snapshots import read_snapshot_info  # noqa: E402
from train.__main__ import main as train_main  # noqa: E402

IMPORTED_ONCE = (
    "train.cli",
    "train.datamodule",
    "callbacks.lock",
    "callbacks.analyses",
    "callbacks.resume",
    "analysis.measures.heldout",
)
LIFE_LIMIT = 300.0
"""Seconds after which a life that neither ends nor is killed counts as hanging."""


@dataclass
class Outcome:
    """What happened over all runs."""

    kills: int = 0
    runs: int = 0
    during_save: int = 0
    """Kills that left a half-written temporary file or folder, or a checkpoint without manifest."""
    before_first: int = 0
    """Kills before the first checkpoint of a run was complete."""
    damaged: int = 0
    """Files under a final name, with a manifest, that do not verify: must be none."""
    steps_repeated: list[int] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run(kills: int, folder: Path, *, max_steps: int = 120, seed: int = 0, accumulate: int = 1) -> Outcome:
    """Kill and resume until there were `kills` kills, in runs below `folder`."""
    for module in IMPORTED_ONCE:
        importlib.import_module(module)
    begun, draw, outcome = time.monotonic(), random.Random(seed), Outcome()
    config = write_config(folder, max_steps, accumulate)
    duration = live(config, folder / "reference", None)
    if duration is None:
        raise RuntimeError(f"the uninterrupted run failed, see {folder / 'reference.log'}")
    started = time.monotonic()
    if live(config, folder / "warm", None) is None:
        raise RuntimeError(f"the second uninterrupted run failed, see {folder / 'warm.log'}")
    duration = time.monotonic() - started  # without making the tokenizer and the prepared text
    outcome.differences += compare(folder / "reference", folder / "warm")
    while outcome.kills < kills:
        name = folder / f"run{outcome.runs}"
        outcome.runs += 1
        while True:
            before = newest_checkpoint(name)
            if live(config, name, draw.uniform(0.1, 0.9) * duration) is not None:
                break
            outcome.kills += 1
            inspect(name, checkpoint_step(before) if before else 0, outcome)
        outcome.differences += compare(folder / "reference", name)
    outcome.seconds = time.monotonic() - begun
    return outcome


def write_config(folder: Path, max_steps: int, accumulate: int) -> Path:
    """configs/train/smoke.yaml, longer, with dropout and frequent checkpoints, and all its files below `folder`."""
    options: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "train" / "smoke.yaml").read_text(encoding="utf-8"))
    options["model"]["dropout"] = 0.1
    options["data"] |= {"tokenizer": str(folder / "tokenizer"), "cache": str(folder / "cache")}
    options["data"]["sources"][0]["init_args"]["path"] = str(ROOT / options["data"]["sources"][0]["init_args"]["path"])
    text = options["data"]["sources"][0]["init_args"]["path"]
    loss = {"texts": text, "languages": ["de"], "max_texts": 4, "max_length": 32, "num_bootstrap": 20}
    analyses = folder / "analyses.yaml"
    analyses.write_text(
        yaml.safe_dump({"analyses": [{"class_path": "HeldOutLoss", "init_args": loss}]}),
        encoding="utf-8",
    )
    live = {"analyses": str(analyses), "schedule": {"base": 4, "every": 20}, "figures": False}
    options["trainer"] |= {
        "max_steps": max_steps,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": 7 * accumulate,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "callbacks.lock.RunLock"},
            {"class_path": "callbacks.snapshots.SnapshotWriter", "init_args": {"schedule": {"base": 2, "every": 10}}},
            {"class_path": "callbacks.analyses.AnalysisCallback", "init_args": live},
            {"class_path": "callbacks.tracking.Tracker", "init_args": {"mode": "disabled", "every_n_steps": 1}},
            {"class_path": "callbacks.resume.ResumeCheckpoint", "init_args": {"every_n_steps": 2}},
        ],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


def live(config: Path, run_folder: Path, kill_after: float | None) -> float | None:
    """One life: its duration in seconds, or None if it was killed (after `kill_after` seconds).

    Raises:
        RuntimeError: it ended with an error, or hangs.
    """
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become_training(config, run_folder)
    limit = LIFE_LIMIT if kill_after is None else kill_after
    while time.monotonic() - started < limit:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            if status == 0:
                return time.monotonic() - started
            raise RuntimeError(
                f"a life ended with exit code {os.waitstatus_to_exitcode(status)}, see {run_folder.name}.log"
            )
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if kill_after is None:
        raise RuntimeError(f"a life hangs, see {run_folder.name}.log")
    return None


def _become_training(config: Path, run_folder: Path) -> None:
    """In the forked child: run the command with its output in a log file, and never return."""
    code = 70
    try:
        log = os.open(run_folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        arguments = ["fit", "--config", str(config), f"--trainer.default_root_dir={run_folder}"]
        code = train_main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def inspect(run_folder: Path, started_at: int, outcome: Outcome) -> None:
    """Count what the kill left behind; a file that has its manifest must verify."""
    checkpoints = run_folder / "checkpoints"
    found = sorted(checkpoints.glob("step_*.ckpt"))
    unfinished = [path for path in found if not path.with_suffix(".json").is_file()]
    torsos = [*run_folder.glob("checkpoints/.*.tmp"), *run_folder.glob("snapshots/.*.tmp")]
    outcome.during_save += bool(unfinished or torsos)
    outcome.before_first += not found
    for path in set(found) - set(unfinished):
        if (problem := find_damage(path)) is not None:
            outcome.damaged += 1
            outcome.differences.append(f"{run_folder.name}: {path.name}: {problem}")
    newest = newest_checkpoint(run_folder)
    steps = [row["step"] for row in read_metrics(run_folder)]
    outcome.steps_repeated.append(
        max(0, max(steps, default=0) - max(started_at, checkpoint_step(newest) if newest else 0))
    )


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without clocks; a last line that a kill cut short is left out."""
    path = run_folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        row.pop("time", None)
        row["values"] = {key: x for key, x in row["values"].items() if not key.startswith(("perf/", "analysis_cost/"))}
        rows.append(row)
    return rows


def compare(reference: Path, run_folder: Path) -> list[str]:
    """Everything in which a run differs from the reference, one line each."""
    differences = []
    snapshots = sorted(path.name for path in (reference / "snapshots").iterdir())
    if sorted(path.name for path in (run_folder / "snapshots").iterdir()) != snapshots:
        differences.append(f"{run_folder.name}: other snapshots than the reference")
    for name in snapshots:
        expected, info = (read_snapshot_info(folder / "snapshots" / name) for folder in (reference, run_folder))
        if expected is None or info is None or expected.weights_sha256 != info.weights_sha256:
            differences.append(f"{run_folder.name}: weights of {name} differ")
    expected_rows, rows = read_metrics(reference), read_metrics(run_folder)
    if len(rows) != len(expected_rows):
        differences.append(f"{run_folder.name}: {len(rows)} metric rows instead of {len(expected_rows)}")
    differences += [
        f"{run_folder.name}: metric row {expected['kind']} of step {expected['step']} differs"
        for expected, row in zip(expected_rows, rows, strict=False)
        if row != expected
    ]
    tables = [ResultTable(folder / "results").frame().drop(columns="run") for folder in (reference, run_folder)]
    if not tables[0].equals(tables[1]):
        differences.append(f"{run_folder.name}: another result table")
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50, help="stop when this many processes were killed")
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of each run")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches per step")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(
            options.kills, Path(folder), max_steps=options.steps, seed=options.seed, accumulate=options.accumulate
        )
    repeated = sorted(outcome.steps_repeated)
    print(f"runs completed                      {outcome.runs}")
    print(f"kills (SIGKILL, random moments)     {outcome.kills}")
    print(f"  in the midst of writing           {outcome.during_save}")
    print(f"  before the first checkpoint       {outcome.before_first}")
    print(f"finished files that do not verify   {outcome.damaged}")
    print(f"steps repeated per kill             median {repeated[len(repeated) // 2]}, most {repeated[-1]}")
    print(f"differences from the uninterrupted  {len(outcome.differences)}")
    for line in outcome.differences[:20]:
        print(f"  {line}")
    print(f"seconds                             {outcome.seconds:.0f}")
    return 1 if outcome.differences else 0


if __name__ == "__main__":
    sys.exit(main())
