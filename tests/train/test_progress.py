"""The line of a training: what it says, and when it expects to end."""

from __future__ import annotations

import io
import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from train.progress import TrainingBar, describe_progress


def test_the_line_names_step_tokens_loss_speed_and_the_end() -> None:
    line = describe_progress(128, 640, tokens=196_608, loss=5.6171, tokens_per_second=7483.0, seconds_left=4 * 60 + 10)
    assert line == "step 128 of 640   196,608 tokens   loss 5.617   7,483 tokens/s   4 min left"


def test_what_is_not_known_is_left_out() -> None:
    assert describe_progress(0, 640) == "step 0 of 640"
    assert describe_progress(640, 640, seconds_left=0.0, loss=math.nan) == "step 640 of 640", "nothing is left"


@pytest.mark.parametrize(
    ("seconds", "said"), [(42, "42 s"), (600, "10 min"), (7200, "2 h"), (47.4 * 3600, "47 h"), (75 * 3600, "3 d 3 h")]
)
def test_durations_are_those_that_people_say(seconds: float, said: str) -> None:
    assert describe_progress(1, 2, seconds_left=seconds).endswith(f"{said} left")


class Slow:
    """A callback that takes 30 s a time and is due twice more."""

    seconds = 0.0

    def seconds_to_come(self, step: int, max_steps: int) -> float:
        return 60.0


def test_the_end_counts_the_analyses_to_come_and_steps_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("train.progress.time.monotonic", lambda: now[0])
    slow, bar = Slow(), TrainingBar()
    trainer: Any = SimpleNamespace(global_step=10, max_steps=40, callbacks=[slow], callback_metrics={})
    module: Any = SimpleNamespace(tokens_seen=1000)
    bar.on_train_start(trainer, module)
    trainer.global_step, now[0], slow.seconds = 20, 140.0, 30.0  # ten steps of a second and one analysis
    assert bar._line(trainer, module) == "step 20 of 40   1,000 tokens   80 s left"


def test_on_a_terminal_the_line_stands_before_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    trainer: Any = SimpleNamespace(
        global_step=0, max_steps=4, callbacks=[], callback_metrics={}, is_global_zero=True, world_size=1
    )
    module: Any = SimpleNamespace(tokens_seen=64)
    bar = TrainingBar()
    bar.setup(trainer, module, "fit")
    bar.on_train_start(trainer, module)
    trainer.global_step = 4
    bar.on_train_batch_end(trainer, module, None, None, 3)
    bar.teardown(trainer, module, "fit")
    last = terminal.getvalue().rstrip().split("\r")[-1]
    assert last.startswith("step 4 of 4   64 tokens")
    assert last.endswith("#" * 20), "a full bar"
