"""The W&B run of a folder: it goes where the user's own settings of W&B say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.tracking.wandb_run import Page, WandbRun

ROW = {"row": 0, "kind": "train", "step": 1, "tokens": 10, "time": 0.0, "values": {"train/loss": 3.0}}


@pytest.mark.parametrize(("mode", "sessions"), [("disabled", 0), ("dryrun", 1)])
def test_auto_follows_the_mode_of_the_environment_also_with_a_login(
    mode: str,
    sessions: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wandb_sessions: Callable[[Path], list[Any]],
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    run = WandbRun(tmp_path, Page(), {"name": "planted", "wandb_id": "abc"})
    run.send(ROW)
    run.finish(0)
    assert len(wandb_sessions(tmp_path)) == sessions
