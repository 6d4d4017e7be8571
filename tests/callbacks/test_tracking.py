"""The record of a run: the local truth, and the W&B run read back from its own file."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch

from analysis.report.run import read_metrics
from callbacks.tracking import (
    AXES,
    Tracker,
    main,
    run_identity,
    scalars_of,
)


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No account, no home: what a fresh machine has."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)


def read_run(folder: Path) -> tuple[list[dict], list[dict], dict, bool]:
    """(history rows, metric definitions, run record, has an exit record) of an offline W&B run, by W&B's own reader."""
    reader = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [str(reader), "leet", "inspect", "--json", str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    run = next(record["run"] for record in records if record["type"] == "run")
    return history, metrics, run, any(record["type"] == "exit" for record in records)


def offline_runs(root: Path) -> list[Path]:
    return sorted((root / "wandb").glob("offline-run-*"))


def test_the_wandb_run_has_the_axes_one_row_a_step_and_every_key(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    root.mkdir()
    (root / "config.yaml").write_text("model: {d_model: 64}\nseed_everything: 1\n")
    tracker = Tracker(mode="auto")
    tracker.start(root)
    assert tracker.location is None, "nothing to say yet, so no session"
    figure = go.Figure(go.Heatmap(z=[[0.0, 1.0]]))
    for step in (0, 1, 2, 4):
        values = {"overlap/shared": 0.1 * step, "overlap/shared_chance": 0.01}
        tracker.record("analysis", values, step, step * 1024, {"figures/overlap": figure})
    assert tracker.location is not None
    tracker.finish(0)

    (folder,) = offline_runs(root)
    history, metrics, run, ended = read_run(folder)
    assert [row["progress/step"] for row in history] == [0, 1, 2, 4]
    assert [row["progress/tokens"] for row in history] == [0, 1024, 2048, 4096]
    for row in history:
        assert row["overlap/shared"] == pytest.approx(0.1 * row["progress/step"])
        assert row["overlap/shared_chance"] == 0.01
    declared = {metric.get("name") or metric.get("glob_name") or metric.get("globName") for metric in metrics}
    assert set(AXES) <= declared
    assert run["display_name" if "display_name" in run else "displayName"] == "demo"
    assert ended
    assert list((folder / "files" / "media" / "plotly").rglob("*.json")), "the figures are stored"
    assert not (tmp_path / "home" / ".local").exists(), "nothing is written outside the run folder"


def test_metrics_file_is_the_truth_also_without_wandb(tmp_path: Path) -> None:
    tracker = Tracker(mode="disabled")
    tracker.start(tmp_path / "demo")
    tracker.record("train", {"train/loss": 2.5}, 10, 640)
    tracker.finish(0)
    (row,) = read_metrics(tmp_path / "demo" / "metrics.jsonl")
    assert (row["kind"], row["step"], row["tokens"], row["values"]) == ("train", 10, 640, {"train/loss": 2.5})
    assert not (tmp_path / "demo" / "wandb").exists()


def test_a_restart_goes_on_in_the_same_run_without_doubled_rows(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    first = Tracker(mode="offline")
    first.start(root)
    for step in (1, 2, 3):
        first.record("train", {"train/loss": 1.0 / step}, step, step)
    first.finish(1)

    second = Tracker(mode="offline")
    second.start(root)
    second.forget_after(2)  # resume from the checkpoint of step 2; W&B was given step 3 before the crash
    assert second.has("train", 2)
    assert not second.has("train", 3), "else the row of step 3 would never be written again"
    for step in (3, 4):
        second.record("train", {"train/loss": 1.0 / step}, step, step)
    second.finish(0)

    assert [row["step"] for row in read_metrics(root / "metrics.jsonl")] == [1, 2, 3, 4]
    sessions = [read_run(folder) for folder in offline_runs(root)]
    identities = {session[2].get("run_id") or session[2].get("runId") for session in sessions}
    assert identities == {run_identity(root)["wandb_id"]}
    assert sorted(row["progress/step"] for session in sessions for row in session[0]) == [1, 2, 3, 4]


def test_a_start_without_new_rows_opens_no_session(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    for _ in range(2):  # the second start of a finished run
        tracker = Tracker(mode="offline")
        tracker.start(root)
        if not tracker.has("train", 1):
            tracker.record("train", {"train/loss": 1.0}, 1, 1)
        tracker.finish(0)
    assert len(offline_runs(root)) == 1


def test_replay_rebuilds_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "demo"
    tracker = Tracker(mode="disabled")
    tracker.start(root)
    for step in (1, 2, 2, 5):
        tracker.record("train", {"train/loss": float(step)}, step, step)
    tracker.finish(0)
    assert main(["replay", str(root)]) == 0
    assert "offline-run" in capsys.readouterr().out
    history, *_ = read_run(offline_runs(root)[0])
    assert [row["progress/step"] for row in history] == [1, 2, 5]


def test_replay_of_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_broken_wandb_does_not_stop_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def refuse(**_: object) -> None:
        raise OSError("service is gone")

    monkeypatch.setattr(wandb, "init", refuse)
    tracker = Tracker(mode="offline")
    with caplog.at_level(logging.WARNING):
        tracker.start(tmp_path / "demo")
    tracker.record("train", {"train/loss": 1.0}, 1, 1)
    assert "service is gone" in caplog.text
    assert [row["step"] for row in read_metrics(tmp_path / "demo" / "metrics.jsonl")] == [1]


def test_numbers_that_are_not_finite_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(mode="disabled")
    tracker.start(tmp_path / "demo")
    with caplog.at_level(logging.WARNING):
        tracker.record("train", {"train/loss": float("nan"), "train/steps": 1.0}, 7, 1)
    assert "step 7: train/loss is nan" in caplog.text
    assert read_metrics(tmp_path / "demo" / "metrics.jsonl")[0]["values"] == {"train/steps": 1.0}


def test_a_torn_last_line_is_dropped_and_a_torn_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = json.dumps({"kind": "train", "step": 1, "tokens": 1, "time": 0.0, "values": {}})
    path.write_text(f"{good}\n{good[:20]}")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    path.write_text(f"{good}\n{good[:20]}\n{good}\n")
    with pytest.raises(ValueError, match="metrics.jsonl:2"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_doubles_of_lightning_are_left_out() -> None:
    metrics = {"train/loss": torch.tensor(1.0), "train/loss_step": torch.tensor(1.0), "val/loss_epoch": 2.0}
    assert scalars_of(metrics) == {"train/loss": 1.0, "val/loss_epoch": 2.0}


@pytest.mark.parametrize(
    ("options", "message"), [({"mode": "sometimes"}, "use auto, online"), ({"every_n_steps": 0}, "at least 1")]
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tracker(**options)
