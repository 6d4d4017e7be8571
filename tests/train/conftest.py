"""A run of four steps on made-up text, and the command line that trains it, for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from train.__main__ import main

ROOT = Path(__file__).resolve().parents[2]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `python -m train ...` in this process; returns exit code, stdout and the last line of stderr."""
    monkeypatch.delenv("BABELSCOPE_TRACEBACK", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # seed_everything sets it; restored after the test

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err.strip().splitlines()[-1] if err.strip() else ""

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of four steps over three languages of made-up text."""
    rows = []
    for language, words in {"de": "das haus ist alt", "en": "the house is old", "tr": "bu ev çok eski"}.items():
        for number in range(60):
            split = "valid" if number % 10 == 0 else "train"
            rows.append({"lang": language, "text": f"{words} {number} " * 3, "split": split, "uid": number})
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = yaml.safe_load((ROOT / "configs" / "train" / "smoke.yaml").read_text(encoding="utf-8"))
    options["model"] |= {"vocab_size": 300, "d_model": 16, "max_position_embeddings": 32}
    options["model"]["optimizer"]["warmup_steps"] = 1
    options["data"] |= {
        "sources": [{"class_path": "train.data.sources.LocalText", "init_args": {"path": str(text)}}],
        "languages": None,
        "tokenizer": str(tmp_path / "tokenizer"),
        "vocab_size": 300,
        "cache": str(tmp_path / "cache"),
        "block_size": 16,
        "batch_size": 4,
    }
    options["trainer"] |= {
        "default_root_dir": str(tmp_path / "run"),
        "max_steps": 4,
        "precision": None,
        "val_check_interval": 4,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "callbacks.lock.RunLock"},
            {"class_path": "callbacks.resume.ResumeCheckpoint", "init_args": {"every_n_steps": 2}},
        ],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path
