"""Nothing is lost: a training killed, stopped and paused at random moments ends like one that was never interrupted.

    python tests/benchmarks/kill_resume.py --faults 50
    python tests/benchmarks/kill_resume.py --faults 50 --ranks 2

Every life of a run is one process a rank (forked, so that the imports are paid once) that runs the real command `train
fit` on configs/train/smoke.yaml, made longer, with dropout, validation, snapshots, an analysis, metrics, the watchdog
and a checkpoint every other step. After a random time it has a fault: all ranks are killed (SIGKILL), or one of them is
killed, stopped (SIGSTOP) or paused (and told to go on). Ranks that are left must end by themselves, by the error of a
collective or by the watchdog; before the training has begun that is the launcher's business, as which this script acts
then. The same command is started again until the run is complete; then the next run begins,
until there were enough faults. Compared with an uninterrupted run of as many ranks: the weights of every snapshot and
of the end (SHA-256), the result table, every row of metrics.jsonl but its clock; and with every row of metrics.jsonl
the merged history of the run's W&B sessions. Prints a table; exits with 1 on any difference.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
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
from callbacks.watchdog import EXIT_CODE as NO_PROGRESS  # noqa: E402
from train.__main__ import main as train_main  # noqa: E402

IMPORTED_ONCE = (
    "train.cli",
    "train.datamodule",
    "callbacks.lock",
    "callbacks.watchdog",
    "callbacks.analyses",
    "callbacks.resume",
    "analysis.measures.heldout",
)
TRACKER = {"mode": "offline", "every_n_steps": 1, "figures": False}
LIFE_LIMIT = 300.0
"""Seconds after which a life that neither ends nor is killed counts as hanging."""
LEAST_WATCHDOG = 15.0
"""Seconds. On a machine that other work keeps busy a start, or a step with snapshot and analysis, may take longer: the
watchdog waits at least as long as a whole uninterrupted run took here, and those runs have none of their own."""


KINDS = ("kill all", "kill one", "stop one", "pause one")
PAUSE = 1.0
"""Seconds of a pause; less than the watchdog's."""


@dataclass(frozen=True)
class Fault:
    """What happens to a life."""

    kind: str
    after: float
    """Seconds since its start."""
    rank: int


@dataclass
class Outcome:
    """What happened over all runs."""

    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    watchdog: float = 0.0
    """Seconds without progress after which it acts."""
    alarms: int = 0
    """Lives that it ended."""
    runs: int = 0
    during_save: int = 0
    """Faults that left a half-written temporary file or folder, or a checkpoint without manifest."""
    before_first: int = 0
    """Faults before the first checkpoint of a run was complete."""
    damaged: int = 0
    """Files under a final name, with a manifest, that do not verify: must be none."""
    steps_repeated: list[int] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_faults(self) -> int:
        return sum(self.faults.values())


def run(
    faults: int,
    folder: Path,
    *,
    max_steps: int = 120,
    seed: int = 0,
    accumulate: int = 1,
    ranks: int = 1,
    watchdog: float | None = None,
) -> Outcome:
    """Interrupt and go on until there were so many `faults`, in runs below `folder`."""
    for module in IMPORTED_ONCE:
        importlib.import_module(module)
    begun, draw, outcome = time.monotonic(), random.Random(seed), Outcome()
    config = write_config(folder, max_steps, accumulate, ranks, LIFE_LIMIT)
    _finish(config, folder / "reference", ranks)
    started = time.monotonic()
    _finish(config, folder / "warm", ranks)
    duration = time.monotonic() - started  # without making the tokenizer and the prepared text
    outcome.differences += compare(folder / "reference", folder / "warm")
    outcome.watchdog = max(LEAST_WATCHDOG, duration) if watchdog is None else watchdog
    write_config(folder, max_steps, accumulate, ranks, outcome.watchdog)
    kinds = KINDS[:1] if ranks == 1 else KINDS
    while outcome.num_faults < faults:
        name = folder / f"run{outcome.runs}"
        outcome.runs += 1
        while True:
            before = newest_checkpoint(name)
            kind = kinds[outcome.num_faults % len(kinds)]
            fault = Fault(kind, draw.uniform(0.1, 0.9) * duration, draw.randrange(ranks))
            codes, struck = live(config, name, ranks, fault)
            outcome.faults[kind] += struck
            outcome.alarms += NO_PROGRESS in codes
            if not any(codes):
                break
            inspect(name, checkpoint_step(before) if before else 0, outcome)
        outcome.differences += compare(folder / "reference", name)
    outcome.seconds = time.monotonic() - begun
    return outcome


def _finish(config: Path, run_folder: Path, ranks: int) -> None:
    """An uninterrupted run."""
    codes, _ = live(config, run_folder, ranks, None)
    if any(codes):
        raise RuntimeError(f"an uninterrupted run ended with {codes}, see {run_folder}.*.log")


def write_config(folder: Path, max_steps: int, accumulate: int, ranks: int, watchdog: float) -> Path:
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
    live = {"analyses": str(analyses), "schedule": {"base": 4, "every": 20}}
    options["trainer"] |= {
        "max_steps": max_steps,
        "accumulate_grad_batches": accumulate,
        "devices": ranks,
        "val_check_interval": 7 * accumulate,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "callbacks.lock.RunLock"},
            {"class_path": "callbacks.watchdog.Watchdog", "init_args": {"seconds": watchdog, "grace_seconds": 2.0}},
            {"class_path": "callbacks.snapshots.SnapshotWriter", "init_args": {"schedule": {"base": 2, "every": 10}}},
            {"class_path": "callbacks.analyses.AnalysisCallback", "init_args": live},
            {"class_path": "callbacks.tracking.Tracker", "init_args": TRACKER},
            {"class_path": "callbacks.resume.ResumeCheckpoint", "init_args": {"every_n_steps": 2}},
        ],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


def live(config: Path, run_folder: Path, ranks: int, fault: Fault | None) -> tuple[list[int], bool]:
    """One life: the exit code of every rank, and whether the fault came before its end.

    Raises:
        RuntimeError: it ended with an error of its own, or hangs.
    """
    stacks = run_folder / "stacks"  # the watchdog's, from the first step on
    shutil.rmtree(stacks, ignore_errors=True)
    started, struck, resume, launcher = time.monotonic(), False, math.inf, math.inf
    port = _free_port()
    children = [os.fork() or _become_training(config, run_folder, rank, ranks, port) for rank in range(ranks)]
    codes: dict[int, int] = {}
    while len(codes) < ranks:
        for rank, child in enumerate(children):
            if rank not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(ended[1])
        elapsed = time.monotonic() - started
        if fault is not None and not struck and elapsed >= fault.after and not codes:
            struck = True
            if fault.kind == "kill all":
                for child in children:
                    os.kill(child, signal.SIGKILL)
            else:
                os.kill(children[fault.rank], signal.SIGKILL if fault.kind == "kill one" else signal.SIGSTOP)
                resume = elapsed + PAUSE if fault.kind == "pause one" else math.inf
                if fault.kind != "pause one" and len(list(stacks.glob("rank_*"))) < ranks:
                    launcher = elapsed + PAUSE
        if elapsed >= resume:
            os.kill(children[fault.rank], signal.SIGCONT)  # type: ignore[union-attr]
            resume = math.inf
        left = set(range(ranks)) - codes.keys()
        # What the supervisor does with a stopped rank that a crash left, and a launcher when one of its ranks is gone.
        if elapsed > launcher or (fault is not None and fault.kind == "stop one" and struck and left == {fault.rank}):
            for rank in left:
                os.kill(children[rank], signal.SIGKILL)
        if elapsed > LIFE_LIMIT:
            for rank in left:
                os.kill(children[rank], signal.SIGKILL)
                os.waitpid(children[rank], 0)
            raise RuntimeError(f"a life hangs after {fault}, see {run_folder}.*.log")
        time.sleep(0.002)
    found = [codes[rank] for rank in range(ranks)]
    if not struck and any(found) and NO_PROGRESS not in found:
        raise RuntimeError(f"a life ended with exit codes {found}, see {run_folder}.*.log")
    return found, struck


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _become_training(config: Path, run_folder: Path, rank: int, ranks: int, port: int) -> int:
    """In the forked child: run the command with its output in a log file, and never return."""
    code = 70
    try:
        log = os.open(f"{run_folder}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if ranks > 1:  # as torchrun would have started it
            names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": port}
            os.environ.update({name: str(value) for name, value in names.items()})
        torch.set_num_threads(1)
        arguments = ["fit", "--config", str(config), f"--trainer.default_root_dir={run_folder}"]
        code = train_main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 70
    except BaseException:
        traceback.print_exc()
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
    differences += compare_with_wandb(run_folder)
    tables = [ResultTable(folder / "results").frame().drop(columns="run") for folder in (reference, run_folder)]
    if not tables[0].equals(tables[1]):
        differences.append(f"{run_folder.name}: another result table")
    return differences


def compare_with_wandb(run_folder: Path) -> list[str]:
    """Rows of metrics.jsonl that the sessions of the run's W&B page lack, have otherwise, or have beside it."""
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    axes = ({"progress/step": row["step"], "progress/tokens": row["tokens"]} for row in rows)
    expected = {row["row"]: row["values"] | axis for row, axis in zip(rows, axes, strict=True)}
    shown: dict[int, dict[str, Any]] = {}
    for session in sorted(run_folder.glob("wandb/offline-run-*")):
        if not any(file.stat().st_size for file in session.glob("*.wandb")):
            continue  # killed before W&B wrote anything
        command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(session)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        for record in map(json.loads, done.stdout.splitlines()):
            if record["type"] == "history":
                item = record["history"]["item"]
                shown[item["_step"]] = {key: value for key, value in item.items() if not key.startswith("_")}
    wrong = [number for number in expected.keys() | shown.keys() if shown.get(number) != expected.get(number)]
    return [f"{run_folder.name}: W&B differs in row {number}" for number in sorted(wrong)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", type=int, default=50, help="stop after so many")
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of each run")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches per step")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run")
    parser.add_argument("--watchdog", type=float, help="seconds; at least 15, as a whole run takes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the faults")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(
            options.faults,
            Path(folder),
            max_steps=options.steps,
            seed=options.seed,
            accumulate=options.accumulate,
            ranks=options.ranks,
            watchdog=options.watchdog,
        )
    repeated = sorted(outcome.steps_repeated)
    print(f"runs completed                      {outcome.runs}, {options.ranks} ranks")
    print(f"faults at random moments            {outcome.num_faults}")
    for kind, count in outcome.faults.items():
        print(f"  {kind:<34}{count}")
    print(f"lives ended by the watchdog         {outcome.alarms}, which waits {outcome.watchdog:.0f} s")
    print(f"lives that left a file in writing   {outcome.during_save}")
    print(f"  before the first checkpoint       {outcome.before_first}")
    print(f"finished files that do not verify   {outcome.damaged}")
    print(f"steps repeated per life             median {repeated[len(repeated) // 2]}, most {repeated[-1]}")
    print(f"differences from the uninterrupted  {len(outcome.differences)}")
    for line in outcome.differences[:20]:
        print(f"  {line}")
    print(f"seconds                             {outcome.seconds:.0f}")
    return 1 if outcome.differences or outcome.damaged else 0


if __name__ == "__main__":
    sys.exit(main())
