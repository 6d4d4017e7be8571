"""Going on with other options: what is followed, what is refused, and what becomes of the course that is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from analysis.report.run import read_metrics
from analysis.results import ResultTable
from tests.train.conftest import Command
from train.module import LanguageModelingModule
from train.optim import learning_rate_factor


@pytest.fixture
def run(config: Path, tmp_path: Path) -> Path:
    """The folder of a run of six steps, not yet started, that records every step and keeps every checkpoint.

    Snapshots and results are of steps 0, 1, 2, 4 and 6.
    """
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    options["trainer"] |= {"max_steps": 6, "precision": "32-true", "val_check_interval": 6}
    text = options["data"]["sources"][0]["init_args"]["path"]
    loss = {"texts": text, "languages": ["de"], "max_length": 16, "num_bootstrap": 20}
    (tmp_path / "list.yaml").write_text(
        yaml.safe_dump({"analyses": [{"class_path": "HeldOutLoss", "init_args": loss}]})
    )
    live = {"analyses": str(tmp_path / "list.yaml"), "schedule": {"base": 2}, "null_networks": 0}
    options["trainer"]["callbacks"] = [
        {"class_path": "callbacks.lock.RunLock"},
        {"class_path": "callbacks.snapshots.SnapshotWriter", "init_args": {"schedule": {"base": 2}}},
        {"class_path": "callbacks.analyses.AnalysisCallback", "init_args": live},
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
        assert after[step] == pytest.approx(0.5 * learning_rate_factor(step - 1, **shape))  # type: ignore[arg-type]
    groups = state(run, 6)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == ([0.3] if name == "muon" else []) + [0.3, 0.0]
    assert all(tuple(group["betas"]) == (0.8, 0.9) and group["eps"] == 1e-7 for group in groups[-2:])
    assert len(groups) == (3 if name == "muon" else 2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def results(run: Path) -> dict[int, float]:
    table = ResultTable(run / "results")
    return {step: table.rows(step, "held_out")[0].value for step in table.steps()}


def test_what_a_course_that_is_left_has_measured_is_not_reported_of_the_new_one(
    command: Command, config: Path, run: Path
) -> None:
    assert command("fit", "--config", config)[0] == 0
    before = results(run)
    assert list(before) == [0, 1, 2, 4, 6]
    changed = ("fit", "--config", config, "--model.optimizer.lr", 0.05, "--allow_changes", "true")
    for place in ("results", "snapshots"):
        (run / place / "left_step_00000006").mkdir()  # as an earlier change of course leaves it
    assert command(*changed, "--resume", checkpoint_of(run, 2))[0] == 0
    after = results(run)
    assert list(after) == list(before)
    assert {step for step in after if after[step] == before[step]} == {0, 1, 2}
    for place in ("results", "snapshots"):
        assert {"left_step_00000004", "left2_step_00000006"} < {*names(run / place)}
    for step in (4, 6):
        weights = load_file(run / "snapshots" / f"step_{step:08d}" / "model.safetensors")
        stored = state(run, step)["state_dict"]
        assert all(torch.equal(tensor, stored[f"model.{name}"]) for name, tensor in weights.items())
    recorded = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "analysis"]
    assert {row["step"]: row["values"]["held_out/bits_per_byte"] for row in recorded} == after


def test_other_options_leave_the_course_also_from_the_newest_checkpoint(
    command: Command, config: Path, run: Path
) -> None:
    """The last checkpoint was lost, so later results than the newest one are there; without changes they stay."""
    assert command("fit", "--config", config)[0] == 0
    before = results(run)

    def lose(*steps: int) -> None:
        for step in steps:
            for path in (checkpoint_of(run, step), checkpoint_of(run, step).with_suffix(".json")):
                path.unlink()

    lose(3, 4, 5, 6)
    start = ("fit", "--config", config, "--trainer.accumulate_grad_batches")
    assert command(*start, 1)[0] == 0
    assert results(run) == before
    assert names(run / "results") == [f"step_{step:08d}" for step in before]
    lose(3, 4, 5, 6)
    assert command(*start, 2, "--allow_changes", "true")[0] == 0
    assert names(run / "results") == sorted(
        [f"step_{step:08d}" for step in before] + ["left_step_00000004", "left_step_00000006"]
    )


def micro_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Tensor]]:
    """Step and tokens of every micro-batch that is trained on from now on."""
    seen: list[tuple[int, Tensor]] = []
    step = LanguageModelingModule.training_step

    def watched(module: LanguageModelingModule, batch: Any, batch_idx: int) -> Tensor:
        seen.append((module.global_step, batch["input_ids"].clone()))
        return step(module, batch, batch_idx)

    monkeypatch.setattr(LanguageModelingModule, "training_step", watched)
    return seen


@pytest.mark.parametrize(("before", "after", "first_length"), [(1, 2, 6), (4, 1, 6), (2, 4, 3)])
def test_a_changed_accumulation_cuts_the_same_steps_and_goes_on_exactly(
    command: Command,
    config: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: int,
    after: int,
    first_length: int,
) -> None:
    """From an odd step; the last case lengthens a run that was complete, where Lightning begins another epoch."""
    start = ("fit", "--config", config, "--allow_changes", "true", "--trainer.accumulate_grad_batches")
    assert command(*start, before, "--trainer.max_steps", first_length)[0] == 0
    whole = ("fit", "--config", config, "--trainer.default_root_dir", run.parent / "whole")
    seen = micro_batches(monkeypatch)
    assert command(*whole)[0] == 0
    expected = dict(seen)
    seen.clear()
    assert command(*start, after, "--resume", checkpoint_of(run, 3))[0] == 0
    assert [step for step, _ in seen] == [step for step in (3, 4, 5) for _ in range(after)]
    for step in (3, 4, 5):
        assert torch.equal(torch.cat([ids for at, ids in seen if at == step]), expected[step])
    end = state(run, 6)
    counted = end["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert set(counted.values()) == {6 * after}, "by which Lightning validates and knows the last batch"
    assert command(*start, after, "--resume", checkpoint_of(run, 5))[0] == 0
    torch.testing.assert_close(state(run, 6)["state_dict"], end["state_dict"], rtol=0, atol=0)
    assert state(run, 6)["loops"] == end["loops"]


def test_steps_of_another_size_are_refused_before_text_is_prepared(
    command: Command, config: Path, run: Path, tmp_path: Path
) -> None:
    assert command("fit", "--config", config)[0] == 0
    before = (run / "config.yaml").read_bytes()
    start = ("fit", "--config", config, "--resume", checkpoint_of(run, 4), "--allow_changes", "true")
    elsewhere = ("--data.cache", tmp_path / "unprepared")
    code, _, line = command(*start, *elsewhere, "--data.batch_size", 8)
    assert code == 2
    assert (
        "step_00000004.ckpt: a step of the checkpoint took 64 tokens (data.batch_size 4 x data.block_size 16)" in line
    )
    assert "would take 128 (8 x 16)" in line
    assert "start a new run with a snapshot as model.initial_weights" in line
    assert not (tmp_path / "unprepared").exists()
    assert (run / "config.yaml").read_bytes() == before
    assert command("validate", "--config", config, "--data.batch_size", 8)[0] == 0, "weights alone are of interest"

    assert command(*start, "--data.batch_size", 8, "--data.block_size", 8)[0] == 0
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    assert {row["step"]: row["tokens"] for row in rows} == {step: 64 * step for step in range(1, 7)}
    stored = ("--model.initial_weights", run / "snapshots" / "step_00000004", "--data.batch_size", 8)
    assert command("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "new", *stored)[0] == 0


@pytest.mark.parametrize(
    ("trained", "given", "said"),
    [
        (
            "name=adamw",
            "name=muon",
            "AdamW of 13, AdamW of 22 parameters; the run has Muon of 12, AdamW of 1, AdamW of 22",
        ),
        (
            "decay_embeddings=true",
            "decay_embeddings=false",
            "AdamW of 13, AdamW of 22 parameters; the run has AdamW of 12",
        ),
        ("name=muon", "name=adamw", "Muon of 12, AdamW of 23 parameters; the run has AdamW of 12, AdamW of 23"),
    ],
)
def test_the_state_of_another_optimizer_is_refused_and_the_configuration_stays(
    command: Command, config: Path, run: Path, trained: str, given: str, said: str
) -> None:
    """The last case has groups of the same sizes."""
    start = ["fit", "--config", config, "--trainer.max_steps", 2, "--allow_changes", "true"]
    if trained == "name=muon":
        start += ["--model.optimizer.decay_embeddings", "false"]
    assert command(*start, f"--model.optimizer.{trained}")[0] == 0
    before = (run / "config.yaml").read_bytes()
    code, _, line = command(*start, "--resume", checkpoint_of(run, 1), f"--model.optimizer.{given}")
    assert code == 2
    assert "step_00000001.ckpt: holds the state of another optimizer" in line
    assert said in line
    assert "model.optimizer.name and decay_embeddings" in line
    assert (run / "config.yaml").read_bytes() == before
    assert "left" not in "".join(names(run / "checkpoints"))
