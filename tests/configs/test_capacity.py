"""configs/capacity/run.sh: what it starts, what it skips, and that what it starts parses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([os.environ.get("CUDA_VISIBLE_DEVICES"), *sys.argv[2:]]) + "\\n")
sys.exit("--seed_everything 2" in " ".join(sys.argv))
"""


@pytest.fixture
def script(tmp_path: Path):
    """Runs run.sh in a folder of its own with a Python that only writes down its arguments and fails at seed 2."""
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable, log=str(log)))
    python.chmod(0o755)
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    def run(*arguments: str, **environment: str) -> list[list[str | None]]:
        log.write_text("")
        given = {**os.environ, "PYTHON": str(python), **environment}
        subprocess.run(["configs/capacity/run.sh", *arguments], cwd=tmp_path, env=given, check=True)
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


@pytest.mark.parametrize("family", ["cpu", "small", "full"])
def test_every_run_of_a_family_parses_and_trains_what_it_says(
    script, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.cli import ParsedRun

    monkeypatch.chdir(ROOT)
    started = script(family, SEEDS="1")
    label, prepare, *rest, report = started
    assert (label[1:3], prepare[1:3]) == (["analysis", "label"], ["train", "prepare"])
    assert report[1:4] == ["analysis", "report", "--capacity"]
    fits = [given[2:] for given in rest if given[1] == "train"]
    measures = [given[2:] for given in rest if given[1] == "analysis"]
    assert len(fits) == len(measures) == 4
    concepts = label[label.index("--out") + 1]
    widths = []
    for fit in (fits[0], fits[-1]):
        run = ParsedRun([str(part) for part in fit]).run
        widths.append(run.model.d_model)
        assert run.model.ffn_dim == 8 * run.model.d_model
        assert run.model.optimizer.lr == pytest.approx(
            (2e-3 if family == "full" else 3e-3) * (128 / widths[-1]) ** 0.5, rel=0.02
        )
        assert (run.seed_everything, run.data.seed) == (1, 1)
        assert concepts in run.data.exclude
        (live,) = [entry for entry in run.trainer.callbacks if entry.class_path.endswith("AnalysisCallback")]
        listed = yaml.safe_load(Path(live.init_args.analyses).read_text(encoding="utf-8"))["analyses"]
        overlap = next(entry["init_args"] for entry in listed if entry["class_path"].endswith("ConceptOverlap"))
        assert overlap["concepts"] == concepts
        assert overlap["share"]
        assert live.init_args.analyses in measures[0]
    assert widths[0] < widths[1]


def test_finished_runs_are_skipped_and_a_failed_one_does_not_stop_the_others(script, tmp_path: Path) -> None:
    done = tmp_path / "runs" / "capacity" / "cpu-d32-s1" / "snapshots" / "step_00000512"
    done.mkdir(parents=True)
    (done / "snapshot.json").touch()
    (tmp_path / "runs" / "capacity" / "concepts.parquet").touch()
    started = script("cpu", SEEDS="1 2 3", WIDTHS="32 64")
    assert started[0][1:3] == ["train", "prepare"], "concepts are there, so they are not labelled again"
    fits = [given for given in started if given[2] == "fit"]
    folders = [str(given[given.index("--trainer.default_root_dir") + 1]).rpartition("/")[2] for given in fits]
    assert folders == [f"cpu-d{width}-s{seed}" for seed in (1, 2, 3) for width in (32, 64)][1:]
    assert started[-1][1:3] == ["analysis", "report"]


def test_runs_at_the_same_time_get_a_device_each(script) -> None:
    started = script("small", SEEDS="1", JOBS="2", GPUS="5 7")
    assert {given[0] for given in started if given[2] == "fit"} == {"5", "7"}


def test_an_unknown_family_is_named() -> None:
    ended = subprocess.run(["configs/capacity/run.sh", "tiny"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "error: no family 'tiny'; give cpu, small or full\n")
