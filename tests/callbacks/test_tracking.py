"""The record of a run: the local truth, and the W&B run read back from its own file."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from analysis.report.run import read_metrics
from analysis.tracking.metrics import MetricsFile
from analysis.tracking.wandb_run import WandbRun, name_folders, run_identity
from callbacks.tracking import Tracker, scalars_of

Sessions = Callable[[Path], list[Any]]
"""Reads the W&B sessions of a run folder, see `conftest.wandb_sessions`."""


@pytest.fixture(autouse=True)
def sessions(wandb_sessions: Sessions) -> Sessions:
    return wandb_sessions


def offline_runs(root: Path) -> list[Path]:
    return sorted((root / "wandb").glob("offline-run-*"))


def test_each_run_of_a_process_names_its_own_folders_and_none_that_the_user_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(variable, "")  # so that it is put back afterwards
        monkeypatch.delenv(variable)
    monkeypatch.setattr("analysis.tracking.wandb_run._named", {})
    monkeypatch.setenv("WANDB_CACHE_DIR", "/of/the/user")
    monkeypatch.chdir(tmp_path)
    for run in ("first", "second"):
        name_folders(Path(run))
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / run / "wandb" / "data")  # also after a change of folder
        assert os.environ["WANDB_CACHE_DIR"] == "/of/the/user"
    assert "WANDB_CONFIG_DIR" not in os.environ, "the user's settings of W&B are read"


def test_the_wandb_run_has_the_axes_one_row_a_step_and_every_key(tmp_path: Path, sessions: Sessions) -> None:
    root = tmp_path / "demo"
    root.mkdir()
    (root / "config.yaml").write_text("model: {d_model: 64}\nseed_everything: 1\n")
    tracker = Tracker(mode="auto")
    tracker.start(root)
    assert tracker.closing_lines() == [], "nothing to say yet, so no session"
    for step in (0, 1, 2, 4):
        tracker.record("analysis", {"overlap/shared": 0.1 * step}, step, step * 1024)
    tracker.finish(0)
    assert "offline-run" in tracker.closing_lines()[0]

    (session,) = sessions(root)
    history, run = session.history, session.run
    assert [row["progress/step"] for row in history] == [0, 1, 2, 4]
    assert [row["progress/tokens"] for row in history] == [0, 1024, 2048, 4096]
    for row in history:
        assert row["overlap/shared"] == pytest.approx(0.1 * row["progress/step"])
    declared = {metric.get("name") or metric.get("glob_name") or metric.get("globName") for metric in session.metrics}
    assert {"progress/step", "progress/tokens", "progress/snapshot"} <= declared
    assert run["display_name" if "display_name" in run else "displayName"] == "demo"
    assert session.ended
    assert not (tmp_path / "home" / ".local").exists(), "nothing is written outside the run folder"


def test_metrics_file_is_the_truth_also_without_wandb(tmp_path: Path) -> None:
    tracker = Tracker(mode="disabled")
    tracker.start(tmp_path / "demo")
    tracker.record("train", {"train/loss": 2.5}, 10, 640)
    tracker.finish(0)
    (row,) = read_metrics(tmp_path / "demo" / "metrics.jsonl")
    assert (row["kind"], row["step"], row["tokens"], row["values"]) == ("train", 10, 640, {"train/loss": 2.5})
    assert not (tmp_path / "demo" / "wandb").exists()


def record(tracker: Tracker, step: int, loss: float | None = None) -> None:
    values = {"train/loss": 1.0 / step if loss is None else loss, "perf/tokens_per_second": time.monotonic()}
    tracker.record("train", values, step, step)


def merged(root: Path, sessions: list[Any]) -> list[dict]:
    """The history of all sessions of a run as W&B merges them: one row a W&B step, in order; internal keys left out."""
    rows: dict[int, dict] = {}
    for session in sessions:
        assert not session.run or session.run_id == run_identity(root)["wandb_id"]
        for row in session.history:
            content = {key: x for key, x in row.items() if not key.startswith("_")}
            assert rows.setdefault(row["_step"], content) == content
    return [rows[number] for number in sorted(rows)]


def expected(root: Path) -> list[dict]:
    return [
        {**row["values"], "progress/step": row["step"], "progress/tokens": row["tokens"]}
        for row in read_metrics(root / "metrics.jsonl")
    ]


def test_a_restart_goes_on_in_the_same_run_without_doubled_rows(tmp_path: Path, sessions: Sessions) -> None:
    root = tmp_path / "demo"
    first = Tracker(mode="offline")
    first.start(root)
    for step in (1, 2, 3):
        record(first, step)
    first.finish(1)

    second = Tracker(mode="offline")
    second.start(root)
    resume_at(second, 2)  # from the checkpoint of step 2: step 3 is computed again, to the same bits
    for step in (3, 4):
        record(second, step)
    second.finish(0)

    assert [row["step"] for row in read_metrics(root / "metrics.jsonl")] == [1, 2, 3, 4]
    assert sum(len(session.history) for session in sessions(root)) == 4
    assert merged(root, sessions(root)) == expected(root)


def resume_at(tracker: Tracker, step: int) -> None:
    assert tracker.metrics is not None
    tracker.metrics.resume_at(step)


def live_and_die(root: Path, first: int, last: int, *, die: bool) -> None:
    """One life of a run in a process of its own: rows of these steps, then SIGKILL, or a good end."""
    import wandb

    wandb.teardown()  # or the child would share the service of this process
    if (child := os.fork()) == 0:
        try:
            tracker = Tracker(mode="offline")
            tracker.start(root)
            resume_at(tracker, first - 1)
            for step in range(first, last + 1):
                record(tracker, step)
            if die:
                os.kill(os.getpid(), signal.SIGKILL)
            tracker.finish(0)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def live_with_kills(root: Path, kills: int) -> None:
    draw, done = random.Random(1), 0
    for _ in range(kills):
        live_and_die(root, max(1, done - draw.randint(0, 20)), done := done + draw.randint(1, 60), die=True)
    live_and_die(root, done, done + 10, die=False)
    assert [row["step"] for row in read_metrics(root / "metrics.jsonl")] == list(range(1, done + 11))


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_after_kills_the_merged_history_equals_the_record_row_by_row(
    tmp_path: Path, kills: int, sessions: Sessions
) -> None:
    root = tmp_path / "demo"
    live_with_kills(root, kills)
    assert len(offline_runs(root)) == kills + 1
    assert merged(root, sessions(root)) == expected(root)


def test_rows_that_a_killed_process_had_not_flushed_are_sent_again_also_when_nothing_new_comes(
    tmp_path: Path, sessions: Sessions
) -> None:
    root = tmp_path / "demo"
    live_and_die(root, 1, 300, die=True)
    (killed,) = offline_runs(root)
    (file,) = killed.glob("*.wandb")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])  # a process group that was killed flushes less
    lost = 300 - len(sessions(root)[0].history)
    assert lost > 100
    tracker = Tracker(mode="offline")
    tracker.start(root)
    tracker.finish(0)
    assert merged(root, sessions(root)) == expected(root)
    assert len(sessions(root)[-1].history) == lost, "what W&B has is not sent again"


def test_another_course_takes_the_place_of_the_rows_that_it_contradicts(tmp_path: Path, sessions: Sessions) -> None:
    root = tmp_path / "demo"
    first = Tracker(mode="offline")
    first.start(root)
    for step in range(1, 6):
        record(first, step)
    first.finish(1)
    second = Tracker(mode="offline")
    second.start(root)
    resume_at(second, 2)
    record(second, 3)
    record(second, 4, loss=7.0)  # e.g. after --allow_changes
    second.finish(0)
    rows = read_metrics(root / "metrics.jsonl")
    assert [(row["row"], row["step"]) for row in rows] == [(0, 1), (1, 2), (2, 3), (5, 4)]
    newest = {row["progress/step"]: row for row in merged(root, sessions(root))}
    assert newest[4]["train/loss"] == 7.0
    assert list(newest.values())[:4] == expected(root)


def test_rows_of_another_course_go_also_those_of_other_kinds_that_come_before_or_at_the_first_contradiction(
    tmp_path: Path,
) -> None:
    """The course that is left validated and measured at steps 3 and 4; the new one writes its training rows first."""
    old = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3, 4, 5):
        for kind in ("analysis", "train", "val"):
            if kind == "train" or step > 2:
                old.add(kind, {"loss": 1.0 / step}, step, step)
    new = MetricsFile(tmp_path / "metrics.jsonl")
    new.resume_at(2)
    assert not new.has("analysis", 3), "whoever asks whether a row is still to be computed must hand it in"
    assert new.has("train", 2)
    assert new.add("train", {"loss": 1.0 / 3}, 3, 3) is None
    assert new.add("analysis", {"loss": 1.0 / 3}, 3, 3) is None
    assert new.has("analysis", 3)
    assert new.add("train", {"loss": 9.0}, 4, 4) is not None
    assert new.add("val", {"loss": 9.5}, 4, 4) is not None, "the row of the course that is left stood in its place"
    shown = [(row["kind"], row["step"], row["values"]["loss"]) for row in new.rows()]
    kept = [("train", 1, 1.0), ("train", 2, 0.5), ("analysis", 3, 1 / 3), ("train", 3, 1 / 3)]
    assert shown == [*kept, ("train", 4, 9.0), ("val", 4, 9.5)]


class Online:
    """The part of a W&B run that a resumed online session uses; the server has the rows before `starting_step`."""

    offline, url = False, "https://example.org/run"

    def __init__(self, starting_step: int) -> None:
        self.starting_step = starting_step
        self.rows: dict[int, dict] = {}

    def log(self, row: dict, step: int) -> None:
        assert step >= max(self.rows, default=self.starting_step), "W&B drops what is written backwards"
        self.rows[step] = row


def test_online_the_server_says_which_rows_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "demo"
    before = Tracker(mode="disabled")
    before.start(root)
    for step in range(1, 9):
        record(before, step)
    server = Online(starting_step=5)
    monkeypatch.setattr(WandbRun, "_init", lambda self: server)
    after = Tracker(mode="online")
    after.start(root)
    record(after, 9)
    assert [row["progress/step"] for row in server.rows.values()] == [6, 7, 8, 9]
    assert after.closing_lines() == ["W&B:      https://example.org/run"]


def test_after_a_row_that_wandb_does_not_take_the_next_start_sends_all_from_there(
    tmp_path: Path, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = Tracker(mode="offline")
    first.start(tmp_path)
    record(first, 1)
    assert first.wandb is not None
    taking = first.wandb.run.log  # type: ignore[union-attr]

    def refuse(row: dict, step: int) -> None:
        if row["progress/step"] == 2:
            raise OSError("no space")
        taking(row, step=step)

    monkeypatch.setattr(first.wandb.run, "log", refuse)
    for step in (2, 3):
        record(first, step)
    first.finish(0)
    assert [record.message for record in caplog.records if "no space" in record.message] == [
        "W&B took no row for step 2 (no space); the next start sends what is missing"
    ]
    second = Tracker(mode="offline")
    second.start(tmp_path)
    second.finish(0)
    assert merged(tmp_path, sessions(tmp_path)) == expected(tmp_path)


def test_a_start_without_new_rows_opens_no_session(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    pages = []
    for _ in range(2):  # the second start of a finished run
        tracker = Tracker(mode="offline")
        tracker.start(root)
        if not tracker.has("train", 1):
            tracker.record("train", {"train/loss": 1.0}, 1, 1)
        tracker.finish(0)
        pages += tracker.closing_lines()
    assert len(offline_runs(root)) == 1
    assert len(pages) == 2
    assert len(set(pages)) == 1, "the second start still says where the page is"


def test_a_trial_of_a_sweep_is_the_run_that_the_sweep_has_named(
    tmp_path: Path, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    wandb.teardown()  # it reads the environment once a process
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "trial")
    tracker = Tracker(mode="offline")
    tracker.start(tmp_path)
    record(tracker, 1)
    tracker.finish(0)
    (session,) = sessions(tmp_path)
    assert session.run_id == "trial" == run_identity(tmp_path)["wandb_id"]
    wandb.teardown()


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


def test_a_logger_that_raises_is_named_once_and_the_others_get_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, whole = CSVLogger(tmp_path / "broken"), CSVLogger(tmp_path / "whole")
    monkeypatch.setattr(broken, "log_metrics", lambda *_, **__: tmp_path.read_text())
    tracker = Tracker(mode="disabled")
    tracker.start(tmp_path / "demo")
    tracker.loggers = [broken, whole]
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            record(tracker, step)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["CSVLogger lacks rows, from step 1 on"]
    assert [row["step"] for row in whole.experiment.metrics] == [1, 2]
    assert [row["step"] for row in read_metrics(tmp_path / "demo" / "metrics.jsonl")] == [1, 2]


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


def test_a_row_that_a_full_disk_cut_short_takes_no_other_with_it(tmp_path: Path, caplog) -> None:
    record = MetricsFile(tmp_path / "metrics.jsonl")
    record.add("train", {"loss": 1.0}, 1, 10)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (record.path.stat().st_size + 10, unlimited[1]))
    try:
        record.add("train", {"loss": 2.0}, 2, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    record.add("train", {"loss": 3.0}, 3, 30)
    assert [row["step"] for row in record.rows()] == [1, 3]
    assert "step 2: row not written" in caplog.text


def test_a_torn_last_line_is_never_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = json.dumps({"row": 0, "kind": "train", "step": 1, "tokens": 1, "time": 0.0, "values": {}})
    path.write_text(f"{good}\n{good[:20]}")
    tracker = Tracker(mode="disabled")
    tracker.start(tmp_path)
    tracker.record("train", {"train/loss": 1.0}, 2, 2)
    assert [(row["row"], row["step"]) for row in read_metrics(path)] == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{broken", "run.json: not JSON with keys"),
        ("run.json", "{}", "run.json: no 'name' in it"),
        ("metrics.jsonl", "null\n{}\n", "metrics.jsonl:1: not a JSON row"),
    ],
)
def test_broken_files_of_a_run_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Tracker(mode="disabled").start(tmp_path)


def test_doubles_of_lightning_are_left_out() -> None:
    metrics = {"train/loss": torch.tensor(1.0), "train/loss_step": torch.tensor(1.0), "val/loss_epoch": 2.0}
    assert scalars_of(metrics) == {"train/loss": 1.0, "val/loss_epoch": 2.0}


@pytest.mark.parametrize(
    ("options", "message"), [({"mode": "sometimes"}, "use auto, online"), ({"every_n_steps": 0}, "at least 1")]
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tracker(**options)
