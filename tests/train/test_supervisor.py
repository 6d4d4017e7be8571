"""Which ends are crashes, how often and how soon the training is started again, and what reaches it meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from babelscope.front import take_option
from callbacks.watchdog import EXIT_CODE
from train.__main__ import main
from train.supervisor import NO_PROGRESS, is_crash, supervise

LIVES = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder = Path({folder!r})
life = len(list(folder.glob("life*")))
(folder / f"life{{life}}").write_text(json.dumps((time.time(), sys.argv[1:])))
{body}
"""


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`lives(body)`: what stands for the training; then `lives.all()` are start and arguments of each life."""
    monkeypatch.delenv("RANK", raising=False)
    popen = subprocess.Popen

    class Lives:
        def __call__(self, body: str) -> None:
            script = LIVES.format(folder=str(tmp_path), body=body)
            monkeypatch.setattr(
                subprocess,
                "Popen",
                lambda command, **options: popen([sys.executable, "-c", script, *command[2:]], **options),
            )

        def all(self) -> list[tuple[float, list[str]]]:
            return [tuple(json.loads(path.read_text())) for path in sorted(tmp_path.glob("life*"))]

    return Lives()


@pytest.mark.parametrize(
    ("code", "crash"),
    [(0, False), (1, True), (2, False), (70, True), (-9, True), (-11, True), (142, True), (143, False), (138, False)],
)
def test_only_what_nobody_asked_for_is_a_crash(code: int, crash: bool) -> None:
    assert NO_PROGRESS == EXIT_CODE == 142
    assert is_crash(code) is crash


def test_a_crash_is_followed_by_another_start_that_resumes(lives: Any) -> None:
    lives("if life == 0: os.kill(os.getpid(), signal.SIGKILL)\nsys.exit(1 if life == 1 else 0)")
    assert supervise(["--config", "x", "--resume", "never"], 5) == 0
    starts, arguments = zip(*lives.all(), strict=True)
    assert len(starts) == 3
    assert max(later - earlier for earlier, later in pairwise(starts)) < 30
    assert arguments[0] == ["train", "fit", "--config", "x", "--resume", "never"]
    assert arguments[1] == arguments[2] == [*arguments[0], "--resume", "auto"]


@pytest.mark.parametrize(("body", "code"), [("sys.exit(2)", 2), ("sys.exit(143)", 143), ("", 0)])
def test_mistakes_stops_and_success_are_final(lives: Any, body: str, code: int) -> None:
    lives(body)
    assert supervise([], 3) == code
    assert len(lives.all()) == 1


def test_the_child_is_started_as_this_process_was(lives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lives("")
    for program in ("/usr/bin/babelscope", "/site/babelscope/__main__.py", "/home/babelscope/train/__main__.py"):
        monkeypatch.setattr(sys, "argv", [program])
        assert supervise([], 1) == 0
    assert [given for _, given in lives.all()] == [["babelscope", "train", "fit"]] * 2 + [["train", "fit"]]


def test_the_last_crash_is_the_result(lives: Any) -> None:
    lives("os.kill(os.getpid(), signal.SIGKILL)")
    assert supervise([], 1) == 137
    assert len(lives.all()) == 2


def test_a_signal_reaches_the_child_and_ends_it_for_good(lives: Any, tmp_path: Path) -> None:
    lives("signal.signal(signal.SIGUSR1, lambda *_: sys.exit(1))\n(folder / 'ready').touch()\ntime.sleep(60)")
    ready = tmp_path / "ready"

    def tell() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    teller = threading.Thread(target=tell)
    teller.start()
    assert supervise([], 5) == 1
    teller.join()
    assert len(lives.all()) == 1
    assert signal.getsignal(signal.SIGUSR1) is before


def test_ranks_that_a_crash_leaves_are_killed_even_stopped_ones(lives: Any, tmp_path: Path) -> None:
    lives(
        "rank = subprocess.Popen(['sleep', '60'])\nos.kill(rank.pid, signal.SIGSTOP)\n"
        "(folder / 'rank').write_text(str(rank.pid))\nos._exit(1 if life == 0 else 0)"
    )
    assert supervise([], 1) == 0
    rank = int((tmp_path / "rank").read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(rank) and psutil.Process(rank).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_option_is_taken_out_of_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for given, found in (([], None), (["--restarts", "3"], 3), (["--restarts=4"], 4)):
        assert take_option("--restarts", [*given, "--config", "x"], type=int) == (found, ["--config", "x"])
    for arguments, message in (
        (["--restarts", "many"], "--restarts: invalid int value: 'many'"),
        (["--restarts"], "--restarts: expected one argument"),
        (["--restarts", "0"], "--restarts 0: use at least 1"),
    ):
        assert main(["fit", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_ranks_of_a_launcher_and_a_configuration_cannot_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("restarts: 3\n")
    smoke = Path(__file__).resolve().parents[2] / "configs" / "train" / "smoke.yaml"
    assert main(["fit", "--config", str(smoke), "--config", str(config)]) == 2
    assert "restarts: 3: say --restarts 3 on the command line of fit" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert main(["fit", "--restarts", "2"]) == 2
    assert "torchrun's --max-restarts" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_training_that_dies_twice_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once by an error, once by SIGKILL, in the midst of its steps."""
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "dying.py").write_text(
        "import os, signal\nfrom pathlib import Path\nfrom pytorch_lightning import Callback\n"
        "class Dies(Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        f"        lives = Path({str(tmp_path)!r}) / 'lives'\n"
        "        if trainer.global_step == 5 and not lives.exists():\n"
        "            lives.touch()\n"
        "            raise RuntimeError('an error of the second kind')\n"
        "        if trainer.global_step == 9 and not lives.with_name('more').exists():\n"
        "            lives.with_name('more').touch()\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("RANK", raising=False)
    run = tmp_path / "run"
    options = {"trainer.default_root_dir": run, "data.tokenizer": tmp_path / "tok", "data.cache": tmp_path / "cache"}
    options |= {"trainer.callbacks+": "callbacks.resume.ResumeCheckpoint", "trainer.enable_progress_bar": "false"}
    given = [f"--{key}={value}" for key, value in options.items()]
    given += ["--trainer.callbacks.every_n_steps=2", "--trainer.callbacks+=dying.Dies"]
    assert main(["fit", "--restarts", "3", "--config", "configs/train/smoke.yaml", *given]) == 0
    assert (tmp_path / "more").exists()
    steps = [row["step"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
    assert max(steps) == 16
