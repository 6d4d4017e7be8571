"""Every executor gives the same table, and what dies in one task stays in that task."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from analysis.base import Analysis, Row
from analysis.checkpoints.executors import Executor, Inline, ProcessPool, Submitit
from analysis.checkpoints.loading import Loading
from analysis.checkpoints.local import LocalFolders
from analysis.commands.run import sweep
from analysis.measures.heldout import HeldOutLoss
from analysis.results import ResultTable
from analysis.snapshots import Snapshot

STEPS = [1, 2, 3]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("suite") / "suite"
    for step in STEPS:
        torch.manual_seed(step)
        model = BloomForCausalLM(BloomConfig(vocab_size=264, hidden_size=8, n_layer=1, n_head=2))
        model.save_pretrained(folder / f"step_{step}")
        byte_tokenizer.save_pretrained(folder / f"step_{step}")
    return folder


@pytest.fixture(scope="module")
def analyses(suite: Path) -> list[Analysis]:
    lines = [
        {"language": "en", "split": split, "text": f"good day {i}"} for split in ("train", "valid") for i in range(3)
    ]
    path = suite.parent / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return [HeldOutLoss(texts=path, num_bootstrap=10)]


@pytest.fixture
def source(suite: Path) -> LocalFolders:
    return LocalFolders(path=suite, loading=Loading(device="cpu"))


@dataclass(kw_only=True)
class Place(Analysis):
    """Says in which process it runs; dies with it at one step."""

    default_name: ClassVar[str] = "place"

    dies_at: int = -1

    def measure(self, snapshot: Snapshot) -> Iterable[Row]:
        if snapshot.id.step == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        yield Row(metric="process", value=os.getpid())
        yield Row(metric="threads", value=torch.get_num_threads())


class Unreadable(LocalFolders):
    """A source that no other process can read."""

    def __setstate__(self, state: dict) -> None:
        raise RuntimeError("made elsewhere")


def test_the_error_of_a_process_reaches_its_line(suite: Path, analyses: list[Analysis], tmp_path: Path) -> None:
    source = Unreadable(path=suite, loading=Loading(device="cpu"))
    executor = ProcessPool(workers=1, start_method="fork")
    (outcome,) = sweep(source, analyses, tmp_path / "results", [1], executor)
    assert outcome.failed == {"checkpoint": "its process failed (RuntimeError: made elsewhere)"}


@pytest.mark.parametrize(
    "executor",
    [
        ProcessPool(workers=2, start_method="fork"),
        Submitit(cluster="debug", folder=Path("jobs")),
        pytest.param(ProcessPool(workers=2), marks=pytest.mark.slow),
        pytest.param(Submitit(cluster="local", folder=Path("jobs"), max_parallel=2), marks=pytest.mark.slow),
    ],
    ids=["fork", "submitit-debug", "forkserver", "submitit-local"],
)
def test_every_executor_gives_the_table_of_the_inline_one(
    executor: Executor,
    source: LocalFolders,
    analyses: list[Analysis],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.chdir(tmp_path)
    sweep(source, analyses, tmp_path / "inline", STEPS, Inline())
    outcomes = sweep(source, analyses, tmp_path / "other", STEPS, executor)
    assert sorted((outcome.step, outcome.failed) for outcome in outcomes) == [(step, {}) for step in STEPS]
    pd.testing.assert_frame_equal(ResultTable(tmp_path / "inline").frame(), ResultTable(tmp_path / "other").frame())
    assert sweep(source, analyses, tmp_path / "other", STEPS, executor) == []


def test_a_worker_that_is_killed_costs_its_own_task_only(source: LocalFolders, tmp_path: Path) -> None:
    pool = ProcessPool(workers=2, start_method="fork")
    outcomes = sweep(source, [Place(dies_at=2)], tmp_path, STEPS, pool)
    assert {outcome.step: outcome.failed for outcome in outcomes} == {
        1: {},
        2: {"checkpoint": "its process was killed by signal 9 (out of memory?)"},
        3: {},
    }
    frame = ResultTable(tmp_path).frame()
    processes = frame[frame.metric == "process"]["value"].tolist()
    assert len(set(processes)) == 2
    assert os.getpid() not in processes
    assert set(frame[frame.metric == "threads"]["value"]) == {max(1, (os.cpu_count() or 1) // 2)}


def test_devices_are_dealt_out_to_workers(source: LocalFolders, tmp_path: Path) -> None:
    pool = ProcessPool(workers=1, devices=["cpu", "cuda:99"], start_method="fork")
    assert pool.workers == 2
    outcomes = sweep(source, [Place()], tmp_path, STEPS[:2], pool)
    failures = {outcome.step: outcome.failed.get("checkpoint", "") for outcome in outcomes}
    assert failures[1] == ""
    assert "device 'cuda:99': this machine has" in failures[2]


def test_a_failing_job_is_named_and_the_others_finish(source: LocalFolders, tmp_path: Path) -> None:
    broken = [HeldOutLoss(texts=tmp_path / "none.jsonl")]
    executor = Submitit(cluster="debug", folder=tmp_path / "jobs")
    outcomes = sweep(source, broken, tmp_path / "results", STEPS, executor)
    assert [outcome.failed["held_out"].startswith(f"{tmp_path}/none.jsonl: no such file") for outcome in outcomes] == [
        True
    ] * len(STEPS)


def test_options_of_slurm_reach_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import submitit

    seen: dict = {}
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 1))
    original = submitit.AutoExecutor.update_parameters

    def update(self: submitit.AutoExecutor, **options: object) -> None:
        seen.update(options)
        original(self, **options)

    monkeypatch.setattr(submitit.AutoExecutor, "update_parameters", update)
    executor = Submitit(
        cluster="slurm",
        folder=tmp_path,
        max_parallel=4,
        partition="gpu",
        gpus_per_node=2,
        mem_gb=128,
        timeout_min=60,
        slurm_options={"account": "lab"},
        setup=["module load cuda"],
    )
    made = executor._executor()
    script = made._executor._make_submission_file_text("python -m x", "uid")
    for line in (
        "--partition=gpu",
        "--gpus-per-node=2",
        "--mem=128GB",
        "--time=60",
        "--account=lab",
        "module load cuda",
    ):
        assert line in script, script
    assert seen["slurm_array_parallelism"] == 4


@pytest.mark.parametrize("make", [lambda: ProcessPool(workers=0), lambda: Submitit(max_parallel=0)])
def test_no_worker_at_all_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="at least 1 is needed"):
        make()  # type: ignore[operator]


def test_a_cluster_that_is_not_there_is_named(source: LocalFolders, analyses: list[Analysis], tmp_path: Path) -> None:
    if os.environ.get("PATH") and any(Path(p, "srun").exists() for p in os.environ["PATH"].split(":")):
        pytest.skip("this machine has SLURM")
    with pytest.raises(ValueError, match="executor: cluster 'slurm'"):
        sweep(source, analyses, tmp_path / "results", [1], Submitit(folder=tmp_path / "jobs"))
