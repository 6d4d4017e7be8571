"""A family of training runs: a few sizes times a few seeds of one configuration, and how far each of them is.

    <folder>/<name>-<size>-s<seed>/      run folders, as `train fit` makes them
    <folder>/<name>.logs/<run>.log       what each of them said
    <folder>/<name>.html                 the report

Everything is read from the folders: there is no other state, so the command may be killed and started again. Called by
`callbacks.capacity`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from analysis.base import Analysis
from analysis.measures import load_analyses
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId
from callbacks.checkpoint_io import find_checkpoints
from callbacks.snapshots import read_snapshot_info, snapshot_folder

LIVE = "callbacks.analyses.AnalysisCallback"

State = Literal["finished", "unmeasured", "interrupted", "new"]
"""Unmeasured: trained to the end, but results of the untrained or of the last network are missing."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something made once, before all runs."""

    makes: str
    """File or folder that is there afterwards; if it is there already, nothing is done."""
    run: list[str]
    """Arguments of `python -m`, e.g. [analysis, label, --texts, ...]."""


class Family:
    """Sizes times seeds.

    Args:
        name: of the family; run folders begin with it.
        configs: training configurations that all runs have in common, later ones winning (as `train fit --config`).
        sizes: by name, the options in which a size differs, e.g. `d128: {model.d_model: 128, model.ffn_dim: 1024}`.
        seeds: one run of every size each: seed of the weights and of the order of the text.
        folder: where the run folders lie.
        before: what is made once before the first run, e.g. the concept file.
        jobs: runs at the same time.
        gpus: devices that the jobs are dealt out to, one job a device at a time; none leaves the choice to `trainer`.

    Raises:
        ValueError: an option out of range, or a size that names an option of the run's own.
    """

    def __init__(
        self,
        name: str,
        configs: list[str],
        sizes: dict[str, dict[str, Any]],
        seeds: list[int],
        folder: str = "runs/capacity",
        before: list[Step] | None = None,
        jobs: int = 1,
        gpus: list[int] | None = None,
    ) -> None:
        for option, value in (("configs", configs), ("sizes", sizes), ("seeds", seeds)):
            if not value:
                raise ValueError(f"{option} is empty; a family needs at least one of them")
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {seeds}: each seed once, two equal runs tell nothing about chance")
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; use at least 1")
        if gpus and jobs > len(gpus):
            raise ValueError(f"jobs is {jobs} but gpus names {len(gpus)}; one job runs on a device at a time")
        own = {"seed_everything", "data.seed", "trainer.default_root_dir"}
        for size, options in sizes.items():
            if taken := own & set(options):
                raise ValueError(f"sizes: {size} sets {min(taken)}, which belongs to the single run; leave it out")
        self.name, self.configs, self.sizes, self.seeds = name, tuple(configs), sizes, tuple(seeds)
        self.folder, self.before = Path(folder), tuple(before or ())
        self.jobs, self.gpus = jobs, tuple(gpus or ())

    @property
    def report(self) -> Path:
        return self.folder / f"{self.name}.html"

    @property
    def logs(self) -> Path:
        return self.folder / f"{self.name}.logs"

    def members(self) -> list[Member]:
        """All runs, seed by seed, so that a family cut short still compares all sizes."""
        return [Member(self, size, seed) for seed in self.seeds for size in self.sizes]


@dataclass(frozen=True)
class Member:
    """One run of a family."""

    family: Family
    size: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.family.name}-{self.size}-s{self.seed}"

    @property
    def folder(self) -> Path:
        return self.family.folder / self.name

    @property
    def log(self) -> Path:
        return self.family.logs / f"{self.name}.log"

    def arguments(self) -> list[str]:
        """Options of `python -m train fit | describe` for this run."""
        options = {
            **self.family.sizes[self.size],
            "seed_everything": self.seed,
            "data.seed": self.seed,
            "trainer.default_root_dir": str(self.folder),
        }
        given = [part for config in self.family.configs for part in ("--config", config)]
        return given + [f"--{key}={_as_text(value)}" for key, value in options.items()]

    def train_command(self) -> list[str]:
        return [sys.executable, "-m", "train", "fit", *self.arguments()]

    def measure_command(self) -> list[str]:
        """Measure what the training could not: an analysis that failed or was over the live budget."""
        source = ["--source", "RunFolder", "--source.path", str(self.folder)]
        what = ["--analyses", self.analyses_file, "--steps", f"0,{self.max_steps}"]
        return [sys.executable, "-m", "analysis", "run", *source, *what]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration of the run as far as the files and the size say, defaults not filled in.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not YAML.
        """
        merged: dict[str, Any] = {}
        for config in self.family.configs:
            merged = _merge(merged, _read_yaml(Path(config)))
        for key, value in self.family.sizes[self.size].items():
            nested = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            merged = _merge(merged, nested)
        return merged

    @cached_property
    def max_steps(self) -> int:
        """Optimizer steps of the run.

        Raises:
            ValueError: the configuration does not say.
        """
        steps = (self.settings.get("trainer") or {}).get("max_steps")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"{' '.join(self.family.configs)}: trainer.max_steps is {steps!r}; set a number of steps")
        return steps

    @cached_property
    def analyses_file(self) -> str:
        """The list of analyses that the live callback runs.

        Raises:
            ValueError: there is no such callback.
        """
        for entry in (self.settings.get("trainer") or {}).get("callbacks") or []:
            if entry.get("class_path") == LIVE and (entry.get("init_args") or {}).get("analyses"):
                return str(entry["init_args"]["analyses"])
        raise ValueError(f"{' '.join(self.family.configs)}: no {LIVE} in trainer.callbacks, so sharing is not measured")

    def analyses(self) -> list[Analysis]:
        return load_analyses(self.analyses_file)

    def state(self) -> State:
        """How far the run is, from what lies in its folder."""
        info = read_snapshot_info(snapshot_folder(self.folder, self.max_steps))
        if info is not None:
            return "unmeasured" if self.missing() else "finished"
        begun = (self.folder / "config.yaml").is_file() or find_checkpoints(self.folder)
        return "interrupted" if begun else "new"

    def missing(self) -> list[tuple[int, str]]:
        """(step, analysis) without results of the present settings, at the two steps that are compared."""
        table = ResultTable(self.folder / "results")
        return [
            (step, analysis.name)
            for analysis in self.analyses()
            for step in (0, self.max_steps)
            if not table.has(SnapshotId(self.name, step), analysis)
        ]


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no output"
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such configuration; see `configs` of the family") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected options with keys")
    return content


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Key by key, `above` wins; lists are replaced, as `train fit` does with a second --config."""
    merged = dict(below)
    for key, value in above.items():
        before = merged.get(key)
        merged[key] = _merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def finished_runs(members: Sequence[Member]) -> list[tuple[str, int, Path]]:
    """(size, seed, run folder) of the runs that can be compared."""
    return [(member.size, member.seed, member.folder) for member in members if member.state() == "finished"]
