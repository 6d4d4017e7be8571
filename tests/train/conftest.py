"""Short runs on made-up text, and the command line that trains them, for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from train.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = {"de": "das haus ist alt", "en": "the house is old", "tr": "bu ev çok eski"}

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


def write_text(folder: Path, languages: Sequence[str] = ("de", "en", "tr")) -> Path:
    """`text.jsonl` in a folder: sixty documents of made-up text a language, a tenth of them for validation."""
    rows = []
    for language in languages:
        for number in range(60):
            split = "valid" if number % 10 == 0 else "train"
            rows.append(
                {"lang": language, "text": f"{SENTENCES[language]} {number} " * 3, "split": split, "uid": number}
            )
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def short_run(text: Path, run: Path, steps: int) -> dict[str, Any]:
    """Options of a run of a few steps on the text of a folder, where tokenizer and prepared text come to lie, too."""
    options = yaml.safe_load((ROOT / "configs" / "train" / "smoke.yaml").read_text(encoding="utf-8"))
    options["model"] |= {"vocab_size": 300, "d_model": 16, "max_position_embeddings": 32}
    options["model"]["optimizer"]["warmup_steps"] = 1
    options["data"] |= {
        "sources": [{"class_path": "LocalText", "init_args": {"path": str(text / "text.jsonl")}}],
        "languages": None,
        "tokenizer": str(text / "tokenizer"),
        "vocab_size": 300,
        "cache": str(text / "cache"),
        "block_size": 16,
        "batch_size": 4,
    }
    options["trainer"] |= {
        "default_root_dir": str(run),
        "max_steps": steps,
        "precision": None,
        "val_check_interval": steps,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "callbacks.lock.RunLock"},
            {"class_path": "callbacks.resume.ResumeCheckpoint", "init_args": {"every_n_steps": steps // 2}},
        ],
    }
    return options


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of four steps over three languages of made-up text."""
    path = tmp_path / "config.yaml"
    options = short_run(write_text(tmp_path), tmp_path / "run", steps=4)
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path
