"""The record of a run: `metrics.jsonl` is the truth, the W&B run is a view of it.

The W&B run is made here rather than by Lightning's logger: Lightning would define `*` against its own step axis, where
globs win at random, and its step is one behind `trainer.global_step`. Our axes are `progress/step` (optimizer steps)
and `progress/tokens`; every row carries both. The run id lives in `run.json`, so a restart continues the same run; rows
that W&B was already given before a crash are not given twice. `python -m callbacks.tracking replay RUN` rebuilds the
whole W&B run from `metrics.jsonl`.

    runs/<name>/run.json         {"name", "wandb_id", "created", "git"}
    runs/<name>/metrics.jsonl    {"kind": "train" | "val" | "analysis", "step", "tokens", "time", "values": {key: x}}
    runs/<name>/wandb/           offline or online files of W&B
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import pytorch_lightning as pl
import torch
import yaml

from analysis.files import write_text_atomic
from analysis.report.run import read_metrics
from callbacks.step import StepCallback

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from wandb.sdk.wandb_run import Run

log = logging.getLogger(__name__)

AXES = ("progress/step", "progress/tokens")
Mode = Literal["auto", "online", "offline", "disabled"]


class Tracker(StepCallback):
    """Writes every logged scalar to `metrics.jsonl` and to W&B, under the axes `progress/step` and `progress/tokens`.

    Scalars of `self.log` are taken from `trainer.callback_metrics` every `every_n_steps` optimizer steps and after each
    validation; analyses hand theirs over through `record`. Put it after the callbacks that record through it.

    Args:
        project: W&B project.
        mode: `auto` goes online if a login is found and offline otherwise (never a prompt); `disabled` keeps only
            `metrics.jsonl`.
        every_n_steps: optimizer steps between two rows of training scalars.
        group: W&B group; post-hoc runs of the same model share it. Defaults to the run's name.
        tags: W&B tags.
        notes: W&B notes; the command that reproduces the run is appended.
    """

    def __init__(
        self,
        project: str = "babelscope",
        mode: Mode = "auto",
        every_n_steps: int = 10,
        group: str | None = None,
        tags: tuple[str, ...] = (),
        notes: str = "",
    ) -> None:
        if mode not in ("auto", "online", "offline", "disabled"):
            raise ValueError(f"mode is {mode!r}; use auto, online, offline or disabled")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1")
        self.project, self.mode, self.every_n_steps = project, mode, every_n_steps
        self.group, self.tags, self.notes = group, tuple(tags), notes
        self.run: Run | None = None
        self.root: Path | None = None
        self._kept: set[tuple[str, int]] = set()
        self._sent: set[tuple[str, int]] = set()
        self._asked = False
        """Whether this session's W&B run has been asked for."""

    # Lightning's hooks ------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or self.root is not None:
            return
        self.start(Path(trainer.default_root_dir))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.root is not None:
            self.forget_after(trainer.global_step)

    def on_step(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            values = {k: v for k, v in scalars_of(trainer.callback_metrics).items() if not k.startswith("val/")}
            values |= {f"optim/lr_{name}": lr for name, lr in _learning_rates(trainer).items()}
            self.record("train", values, step, _tokens(module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        values = {k: v for k, v in scalars_of(trainer.callback_metrics).items() if k.startswith("val/")}
        if values:
            self.record("val", values, trainer.global_step, _tokens(pl_module))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.finish(0)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.finish(1)

    # the record itself ------------------------------------------------------------------------------------------------

    def start(self, root: Path) -> None:
        """Open the record of the run in folder `root`: read what is there."""
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        run_identity(root)
        self._kept = {(row["kind"], row["step"]) for row in read_metrics(root / "metrics.jsonl")}
        self._sent = set(self._kept)
        self._asked = self.mode == "disabled"

    def _begin_once(self) -> None:
        """Begin or continue the W&B run with the first row: a finished run that is started again opens no session."""
        if self._asked or self.root is None:
            return
        self._asked = True
        try:
            self.run = self._begin(self.root, run_identity(self.root))
        except Exception as error:  # W&B must never stop a training run: its local service can fail in many ways
            log.warning("W&B is unavailable (%s); the run is recorded in %s only", error, self.root / "metrics.jsonl")

    def record(
        self,
        kind: str,
        values: Mapping[str, float],
        step: int,
        tokens: int | None,
        media: Mapping[str, go.Figure] | None = None,
    ) -> None:
        """Append one row; a no-op on other ranks than the first. `media` are figures for W&B, not kept in the JSONL."""
        if self.root is None:
            return
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        for key in values.keys() - finite.keys():
            log.warning("step %d: %s is %s and is not recorded", step, key, values[key])
        row = {"kind": kind, "step": step, "tokens": tokens, "time": time.time(), "values": finite}
        try:
            with (self.root / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:  # a full disk must not end the training
            log.warning("step %d: row not written to metrics.jsonl: %s", step, error)
        self._kept.add((kind, step))
        if (kind, step) in self._sent:
            return
        self._begin_once()
        if self.run is None:
            return
        self._sent.add((kind, step))
        self._send({**finite, **_as_wandb(media or {})}, step, tokens)

    def has(self, kind: str, step: int) -> bool:
        """True if `metrics.jsonl` holds a row of this kind for this step, also from before a restart."""
        return (kind, step) in self._kept

    def forget_after(self, step: int) -> None:
        """Training goes on from `step`: later rows will be written anew, but W&B is not given them a second time."""
        assert self.root is not None
        forget_after(self.root / "metrics.jsonl", step)
        self._kept = {row for row in self._kept if row[1] <= step}

    def finish(self, exit_code: int) -> None:
        if self.run is not None:
            try:
                self.run.finish(exit_code=exit_code)
            except Exception as error:
                log.warning("W&B did not finish cleanly: %s", error)
            self.run = None
        self.root = None

    @property
    def location(self) -> str | None:
        """Where to look: the URL of an online run or the folder of an offline one."""
        if self.run is None:
            return None
        return self.run.url if not self.run.offline else str(Path(self.run.dir).parent)

    # W&B --------------------------------------------------------------------------------------------------------------

    def _begin(self, root: Path, identity: dict) -> Run:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        for name, folder in {
            "WANDB_DATA_DIR": "data",
            "WANDB_CACHE_DIR": "cache",
            "WANDB_CONFIG_DIR": "config",
        }.items():
            os.environ.setdefault(name, str(root / "wandb" / folder))  # nothing outside the run folder
        mode = self.mode
        if mode == "auto":
            mode = "online" if _logged_in() else "offline"
        run = wandb.init(
            project=self.project,
            id=identity["wandb_id"],
            name=identity["name"],
            group=self.group or identity["name"],
            tags=self.tags or None,
            notes=f"{self.notes}\npython -m train fit --config {root / 'config.yaml'}".strip(),
            job_type="train",
            config=_config_of(root),
            dir=str(root),
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(init_timeout=60, silent=True, console="off"),
        )
        define_axes(run)
        if mode == "offline":
            log.info("W&B is offline: %s (upload later with `wandb sync`)", Path(run.dir).parent)
        return run

    def _send(self, values: Mapping[str, Any], step: int, tokens: int | None) -> None:
        assert self.run is not None
        try:
            self.run.log({**values, "progress/step": step, **({} if tokens is None else {"progress/tokens": tokens})})
        except Exception as error:
            log.warning("W&B took no row for step %d: %s", step, error)


def define_axes(run: Run) -> None:
    """Every metric is drawn against optimizer steps; tokens are the second axis in every row."""
    for axis in AXES:
        run.define_metric(axis, hidden=True)
    run.define_metric("*", step_metric="progress/step")


def run_identity(root: Path) -> dict:
    """The identity in `run.json`, made on the first call: name, W&B id, creation time, git commit."""
    path = root / "run.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    identity = {
        "name": root.name,
        "wandb_id": uuid4().hex[:12],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_commit(),
    }
    write_text_atomic(path, json.dumps(identity, indent=1))
    return identity


def forget_after(path: Path, step: int) -> None:
    """Drop rows after `step` from a `metrics.jsonl`: training resumes there and will write them again."""
    rows = read_metrics(path)
    kept = [row for row in rows if row["step"] <= step]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
        write_text_atomic(path, text)


def scalars_of(metrics: Mapping[str, torch.Tensor | float]) -> dict[str, float]:
    """Plain numbers of Lightning's metrics; `_step`/`_epoch` doubles of the same key are left out."""
    doubles = {key for key in metrics if key.endswith(("_step", "_epoch")) and key.rpartition("_")[0] in metrics}
    return {key: float(value) for key, value in metrics.items() if key not in doubles}


def replay(root: Path, project: str, mode: Literal["online", "offline"]) -> str:
    """Make a fresh W&B run from `metrics.jsonl`; returns where it is.

    Rows come in order of step, one per (kind, step), so a record torn by crashes becomes a whole run again.
    """
    rows = read_metrics(root / "metrics.jsonl")
    if not rows:
        raise FileNotFoundError(f"{root / 'metrics.jsonl'}: no rows to replay")
    tracker = Tracker(project=project, mode=mode)
    identity = run_identity(root) | {"wandb_id": uuid4().hex[:12]}
    tracker.root = root
    tracker.run = tracker._begin(root, identity)
    location = str(tracker.location)
    latest = {(row["step"], row["kind"]): row for row in rows}
    for (step, _), row in sorted(latest.items()):
        tracker._send(row["values"], step, row["tokens"])
    tracker.finish(0)
    return location


def _as_wandb(media: Mapping[str, go.Figure]) -> dict[str, Any]:
    if not media:
        return {}
    import wandb

    return {key: wandb.Plotly(figure) for key, figure in media.items()}


def _learning_rates(trainer: pl.Trainer) -> dict[str, float]:
    return {
        str(index): float(group["lr"])
        for optimizer in trainer.optimizers
        for index, group in enumerate(optimizer.param_groups[:1])
    }


def _tokens(module: pl.LightningModule) -> int | None:
    tokens = getattr(module, "tokens_seen", None)
    return None if tokens is None else int(tokens)


def _logged_in() -> bool:
    """Whether credentials are at hand; asks nobody and prompts for nothing."""
    if os.environ.get("WANDB_MODE") == "offline":
        return False
    import wandb

    return bool(os.environ.get("WANDB_API_KEY")) or bool(wandb.login(prompt=False, verify=False))


def _config_of(root: Path) -> dict:
    path = root / "config.yaml"
    if not path.is_file():
        return {}
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            cwd=Path(__file__).parent,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def main(arguments: Iterable[str] | None = None) -> int:
    """`python -m callbacks.tracking replay RUN [--mode online]`: rebuild the W&B run from the local record."""
    import argparse
    import sys

    parser = argparse.ArgumentParser(prog="python -m callbacks.tracking", description=main.__doc__)
    parser.add_argument("command", choices=["replay"])
    parser.add_argument("run", type=Path, help="run folder, e.g. runs/demo")
    parser.add_argument("--project", default="babelscope")
    parser.add_argument("--mode", default="offline", choices=["online", "offline"])
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        location = replay(options.run, options.project, options.mode)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{location}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
