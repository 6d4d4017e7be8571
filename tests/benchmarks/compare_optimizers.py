"""AdamW against Muon on the demo: steps to the same loss, and sharing at the same loss.

    python tests/benchmarks/compare_optimizers.py [--steps 320] [--analyses]

Equal budgets of tuning: both try the same four peak learning rates at `--steps` steps on one seed, and keep the one
with the lowest held-out bits per byte; every other setting is that of configs/train/demo.yaml. Then, for each of three
seeds, Muon runs of their own length and schedule bracket the loss that AdamW ended with: the steps that Muon needs come
from a straight line between the two nearest (in log steps), and `rank_transfer` (`--analyses`) at that loss from the
same line. A run of its own for each length, since a long schedule's high learning rate holds up the loss on its way.

One training at a time, one thread. What is finished is skipped and what was interrupted goes on, so the same command
ends in the same table. Needs what `make demo` makes first (concepts); runs are kept in runs/optimizers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import yaml

ROOT = Path(__file__).resolve().parents[2]
RUNS = Path("runs/optimizers")
RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
SEEDS = (1, 2, 3)
SHARES = (0.3, 0.4, 0.2, 0.5, 0.15, 0.65, 0.8, 1.0)
"""Lengths of Muon's runs in AdamW's steps; a seed takes them in this order until AdamW's loss is bracketed."""


@dataclass(frozen=True)
class Run:
    """One training."""

    name: str
    rate: float
    seed: int
    steps: int

    @property
    def folder(self) -> Path:
        return RUNS / f"{self.name}-lr{self.rate:g}-seed{self.seed}-steps{self.steps}"

    def bits_per_byte(self) -> float | None:
        """Held-out bits per byte at the end, mean over languages; None before it is trained."""
        path = ROOT / self.folder / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        ends = [row["values"] for row in rows if row["kind"] == "val" and row["step"] == self.steps]
        return ends[0]["val/bits_per_byte/mean"] if ends else None

    def train(self) -> float:
        if (bits := self.bits_per_byte()) is None:
            overrides = {
                f"--model.optimizer.{key}": value
                for key, value in {"name": self.name, "lr": self.rate, "warmup_steps": self.steps // 10}.items()
            }
            overrides |= {"--seed_everything": self.seed, "--trainer.max_steps": self.steps}
            overrides |= {"--trainer.val_check_interval": self.steps, "--trainer.default_root_dir": self.folder}
            configs = ("--config", "configs/train/demo.yaml", "--config", str(write_callbacks()))
            _python("train", "fit", *configs, *(f"{key}={value}" for key, value in overrides.items()))
            bits = self.bits_per_byte()
            assert bits is not None
        print(f"{self.folder.name:40} {bits:.4f} bits per byte", flush=True)
        return bits

    def rank_transfer(self) -> float:
        """Mean over language pairs, at the last snapshot."""
        from analysis.results import ResultTable

        source = {"class_path": "RunFolder", "init_args": {"path": str(self.folder)}}
        analyses = [entry for entry in _default_analyses() if entry["class_path"] == "ConceptOverlap"]
        arguments = {"source": source, "steps": "last", "analyses": analyses, "null_networks": 0}
        path = ROOT / RUNS / "analysis.yaml"
        path.write_text(yaml.safe_dump(arguments), encoding="utf-8")
        _python("analysis", "run", "--config", str(path))
        frame = ResultTable(ROOT / self.folder / "results").frame(["overlap"])
        found = frame[(frame.metric == "rank_transfer") & (frame.step == self.steps)]
        return float(found.value.mean())


def _default_analyses() -> list[dict]:
    return yaml.safe_load((ROOT / "configs/analyses/default.yaml").read_text(encoding="utf-8"))["analyses"]


def _python(package: str, *arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", package, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-2000:]}")


def write_callbacks() -> Path:
    """Only what a comparison needs: no live analyses, the last snapshot, a checkpoint to go on from."""
    callbacks = [
        {"class_path": "callbacks.lock.RunLock"},
        {"class_path": "callbacks.snapshots.SnapshotWriter", "init_args": {"schedule": {"base": None, "steps": [0]}}},
        {"class_path": "callbacks.tracking.Tracker", "init_args": {"mode": "disabled", "every_n_steps": 8}},
        {"class_path": "callbacks.resume.ResumeCheckpoint", "init_args": {"every_n_steps": 64, "keep": 1}},
    ]
    path = ROOT / RUNS / "callbacks.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks, "enable_progress_bar": False}}))
    return path


def tune(name: str, steps: int) -> float:
    """The learning rate with the lowest loss on the first seed."""
    losses = {rate: Run(name, rate, SEEDS[0], steps).train() for rate in RATES}
    best = min(losses, key=losses.__getitem__)
    if best in (RATES[0], RATES[-1]):
        print(f"{name}: the best learning rate, {best:g}, is at the edge of the grid")
    return best


def bracket(rate: float, seed: int, steps: int, target: float) -> tuple[Run, Run]:
    """Muon's longest run above the target loss and its shortest at or below it."""
    above: dict[int, Run] = {}
    below: dict[int, Run] = {}
    for share in SHARES:
        length = round(share * steps)
        if (above and length < max(above)) or (below and length > min(below)):
            continue
        run = Run("muon", rate, seed, length)
        (below if run.train() <= target else above)[length] = run
    if not above or not below:
        raise RuntimeError(f"seed {seed}: Muon's runs of {SHARES} x {steps} steps do not bracket {target:.4f}")
    return above[max(above)], below[min(below)]


def between(pair: tuple[Run, Run], target: float, value: Callable[[Run], float]) -> float:
    """`value` on a straight line between the two runs, where the loss is `target`."""
    losses = [run.train() for run in pair]
    part = (losses[0] - target) / (losses[0] - losses[1])
    start, end = (value(run) for run in pair)
    return start + part * (end - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=320, help="optimizer steps of AdamW")
    parser.add_argument("--analyses", action="store_true", help="also rank_transfer at equal loss")
    options = parser.parse_args()
    rates = {name: tune(name, options.steps) for name in ("adamw", "muon")}
    ratios, sharing = [], []
    for seed in SEEDS:
        adamw = Run("adamw", rates["adamw"], seed, options.steps)
        target = adamw.train()
        pair = bracket(rates["muon"], seed, options.steps, target)
        steps = math.exp(between(pair, target, lambda run: math.log(run.steps)))
        ratios.append(steps / options.steps)
        line = f"seed {seed}: AdamW {target:.4f} bits per byte in {options.steps} steps, Muon the same in {steps:.0f}"
        if options.analyses:
            sharing.append((adamw.rank_transfer(), between(pair, target, Run.rank_transfer)))
            line += "; rank_transfer at that loss {:.4f} and {:.4f}".format(*sharing[-1])
        print(line, flush=True)
    print(f"learning rates {rates['adamw']:g} (AdamW) and {rates['muon']:g} (Muon)")
    print(f"steps to AdamW's loss: {mean(ratios):.3f} of AdamW's ({min(ratios):.3f} to {max(ratios):.3f})")
    if sharing:
        differences = [muon - adamw for adamw, muon in sharing]
        shown = ", ".join(f"{difference:+.4f}" for difference in differences)
        print(f"rank_transfer at equal loss, Muon minus AdamW: {mean(differences):+.4f} ({shown})")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
