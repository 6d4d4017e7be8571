"""Going on with other options: what is followed, what is refused, and what becomes of the course that is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from analysis.report.run import read_metrics
from tests.train.conftest import Command
from train.optim import learning_rate_factor


@pytest.fixture
def run(config: Path, tmp_path: Path) -> Path:
    """The folder of a run of six steps, not yet started, that records every step and keeps every second checkpoint."""
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    options["trainer"] |= {"max_steps": 6, "precision": "32-true", "val_check_interval": 6}
    options["trainer"]["callbacks"] = [
        {"class_path": "callbacks.lock.RunLock"},
        {"class_path": "callbacks.tracking.Tracker", "init_args": {"mode": "disabled", "every_n_steps": 1}},
        {"class_path": "callbacks.resume.ResumeCheckpoint", "init_args": {"every_n_steps": 1, "keep": 9}},
    ]
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    return tmp_path / "run"


def checkpoint_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}.ckpt"


def state(run: Path, step: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(checkpoint_of(run, step), weights_only=True)
    return content


def rates(run: Path) -> dict[int, float]:
    rows = read_metrics(run / "metrics.jsonl")
    return {row["step"]: row["values"]["optim/lr_0"] for row in rows if row["kind"] == "train"}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_options_of_the_optimizer_that_are_changed_on_resume_act(
    command: Command, config: Path, run: Path, name: str
) -> None:
    start = ("fit", "--config", config, "--model.optimizer.name", name)
    assert command(*start)[0] == 0
    before = rates(run)
    given = ("lr=0.5", "weight_decay=0.3", "eps=1e-7", "betas=[0.8, 0.9]", "floor=0.5")
    changed = [f"--model.optimizer.{option}" for option in given]
    assert command(*start, *changed, "--resume", checkpoint_of(run, 2), "--allow_changes", "true")[0] == 0
    after = rates(run)
    shape = {"warmup_steps": 1, "max_steps": 6, "floor": 0.5}
    assert {step: after[step] for step in (1, 2)} == {step: before[step] for step in (1, 2)}
    for step in (3, 4, 5, 6):
        assert after[step] == pytest.approx(0.5 * learning_rate_factor(step, **shape))  # type: ignore[arg-type]
    groups = state(run, 6)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == ([0.3] if name == "muon" else []) + [0.3, 0.0]
    assert all(tuple(group["betas"]) == (0.8, 0.9) and group["eps"] == 1e-7 for group in groups[-2:])
    assert len(groups) == (3 if name == "muon" else 2)
