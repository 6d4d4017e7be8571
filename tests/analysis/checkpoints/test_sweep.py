"""A sweep may be killed, repeated, doubled or disturbed: the table ends the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from analysis.base import Analysis, Row
from analysis.checkpoints.executors import Inline
from analysis.checkpoints.loading import Loading
from analysis.checkpoints.local import LocalFolders, RunFolder
from analysis.checkpoints.names import Naming
from analysis.checkpoints.sweep import plan
from analysis.commands.run import sweep
from analysis.results import ResultTable, null_folder
from analysis.snapshots import Snapshot

STEPS = [1, 2, 3, 4]
FORK = multiprocessing.get_context("fork")


@dataclass(kw_only=True)
class Norms(Analysis):
    """Norms of the parameters, which tell one checkpoint from another; writes down every time that it runs."""

    default_name: ClassVar[str] = "norms"
    not_settings: ClassVar[tuple[str, ...]] = (*Analysis.not_settings, "log", "seconds", "fails_at")

    log: Path
    seconds: float = 0.0
    fails_at: int = -1
    scale: float = 1.0

    def measure(self, snapshot: Snapshot) -> Iterable[Row]:
        if snapshot.id.step == self.fails_at:
            raise RuntimeError("a unit\nwithout texts")
        with self.log.open("a") as log:
            log.write(f"{self.name} {snapshot.id.step}\n")
        time.sleep(self.seconds)
        for layer, parameter in enumerate(snapshot.model.parameters()):
            yield Row(metric="norm", value=self.scale * float(parameter.detach().norm()), layer=layer)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("suite") / "suite"
    for step in STEPS:
        torch.manual_seed(step)
        model = BloomForCausalLM(BloomConfig(vocab_size=264, hidden_size=8, n_layer=1, n_head=2))
        model.save_pretrained(folder / f"step_{step}")
        byte_tokenizer.save_pretrained(folder / f"step_{step}")
    return folder


@pytest.fixture
def source(suite: Path) -> LocalFolders:
    return LocalFolders(path=suite, loading=Loading(device="cpu"))


def table_of(results: Path) -> pd.DataFrame:
    return ResultTable(results).frame()


def runs_of(log: Path) -> list[str]:
    return sorted(log.read_text().splitlines()) if log.is_file() else []


def test_a_rerun_measures_only_what_is_missing(source: LocalFolders, tmp_path: Path) -> None:
    log, results = tmp_path / "log", tmp_path / "results"
    first, second = Norms(log=log), Norms(name="again", log=log)
    sweep(source, [first], results, STEPS[:2], Inline())
    outcomes = sweep(source, [first, second], results, STEPS, Inline())
    assert [(o.step, o.measured) for o in outcomes] == [
        (1, ["again"]),
        (2, ["again"]),
        (3, ["norms", "again"]),
        (4, ["norms", "again"]),
    ]
    assert runs_of(log) == sorted(f"{name} {step}" for name in ("norms", "again") for step in STEPS)
    assert sweep(source, [first, second], results, STEPS, Inline()) == []


def test_changed_settings_changed_precision_and_force_measure_again(source: LocalFolders, tmp_path: Path) -> None:
    log, results = tmp_path / "log", tmp_path / "results"
    sweep(source, [Norms(log=log)], results, [1], Inline())
    assert len(plan(source, [Norms(log=log, scale=2.0)], results, [1])) == 1
    half = LocalFolders(path=source.path, loading=Loading(device="cpu", dtype="bfloat16"))
    assert len(plan(half, [Norms(log=log)], results, [1])) == 1
    assert len(plan(source, [Norms(log=log)], results, [1], force=True)) == 1
    assert plan(source, [Norms(log=log)], results, [1]) == []


def test_what_texts_become_tokens_by_is_measured_anew(
    source: LocalFolders, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    results, analyses = tmp_path / "results", [Norms(log=tmp_path / "log")]
    sweep(source, analyses, results, [1], Inline())
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    named = replace(source, tokenizer=str(tmp_path / "tokenizer"))
    explicit = replace(source, loading=Loading(device="cpu", architecture="BloomForCausalLM"))
    for other in (replace(source, prefix_token="<s>"), named, explicit):
        assert len(plan(other, analyses, results, [1])) == 1
    sweep(named, analyses, results, [1], Inline())
    shutil.copytree(tmp_path / "tokenizer", tmp_path / "moved")
    moved = replace(source, tokenizer=str(tmp_path / "moved"))
    assert plan(moved, analyses, results, [1]) == [], "its content counts"
    (tmp_path / "moved" / "tokenizer.json").write_text("{}")
    assert len(plan(replace(moved), analyses, results, [1])) == 1
    table, old = ResultTable(results), {"dtype": "float32"}  # as it was stamped before 2026-11-26
    table.write(source.ids()[0], analyses[0], table.rows(1, "norms"), 1.0, old)
    assert plan(replace(source, prefix_token="<s>"), analyses, results, [1]) == []


def test_tokens_that_are_known_later_are_told_without_a_measurement(source: LocalFolders, tmp_path: Path) -> None:
    results, log = tmp_path / "results", tmp_path / "log"
    sweep(source, [Norms(log=log)], results, [1, 2], Inline())
    numbers = table_of(results).drop(columns="tokens")
    assert table_of(results)["tokens"].isna().all()
    attachment = ResultTable(results).path(1, "norms", "more")
    shutil.copy(ResultTable(results).path(1, "norms"), attachment)
    named = replace(source, naming=Naming(tokens_per_step=100))
    how = sweep(named, [Norms(log=log)], results, STEPS, Inline())
    assert [outcome.step for outcome in how] == [3, 4]
    frame = table_of(results)
    assert (frame["tokens"] == 100 * frame["step"]).all()
    pd.testing.assert_frame_equal(frame.drop(columns="tokens")[: len(numbers)], numbers)
    assert json.loads(pq.read_schema(attachment).metadata[b"babelscope"])["tokens"] == 100
    told = json.loads((results / "identity.json").read_text())["checkpoints"]
    assert [record["tokens"] for record in told] == [100, 200, 300, 400]
    before = ResultTable(results).path(1, "norms").stat().st_mtime_ns
    for source_of_all in (named, source):  # the second does not know the tokens
        assert sweep(source_of_all, [Norms(log=log)], results, STEPS, Inline()) == []
        assert ResultTable(results).path(1, "norms").stat().st_mtime_ns == before


def test_a_checkpoint_whose_files_changed_is_measured_again(
    suite: Path, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    run = tmp_path / "run"
    folder = run / "snapshots" / "step_00000001"

    def write(seed: int) -> None:
        torch.manual_seed(seed)
        BloomForCausalLM(BloomConfig(vocab_size=264, hidden_size=8, n_layer=1, n_head=2)).save_pretrained(folder)
        byte_tokenizer.save_pretrained(folder)
        digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        manifest = {"run": "run", "step": 1, "tokens": 8, "weights_sha256": digest}
        (folder / "snapshot.json").write_text(json.dumps(manifest))

    results, analyses = run / "results", [Norms(log=tmp_path / "log")]
    write(1)
    sweep(RunFolder(path=run, loading=Loading(device="cpu")), analyses, results, [1], Inline())
    before = table_of(results)
    assert plan(RunFolder(path=run, loading=Loading(device="cpu")), analyses, results, [1]) == []
    write(2)
    sweep(RunFolder(path=run, loading=Loading(device="cpu")), analyses, results, [1], Inline())
    assert not before.equals(table_of(results))
    assert len(runs_of(tmp_path / "log")) == 2


def test_an_analysis_that_fails_is_named_and_the_others_go_on(source: LocalFolders, tmp_path: Path) -> None:
    bad, good = Norms(log=tmp_path / "a", fails_at=2, name="bad"), Norms(log=tmp_path / "b", name="good")
    outcomes = sweep(source, [bad, good], tmp_path / "results", STEPS, Inline())
    assert {o.step: o.failed for o in outcomes if o.failed} == {2: {"bad": "RuntimeError: a unit without texts"}}
    assert len(runs_of(tmp_path / "b")) == 4
    again = sweep(source, [Norms(log=tmp_path / "a", name="bad"), good], tmp_path / "results", STEPS, Inline())
    assert [(o.step, o.measured, o.failed) for o in again] == [(2, ["bad"], {})]


def test_a_sweep_that_was_killed_ends_like_a_clean_one(source: LocalFolders, tmp_path: Path) -> None:
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    sweep(source, [Norms(log=tmp_path / "clean.log")], clean, STEPS, Inline())
    slow = [Norms(log=tmp_path / "log", seconds=0.3)]
    process = FORK.Process(target=sweep, args=(source, slow, killed, STEPS, Inline()))
    process.start()
    deadline = time.monotonic() + 60
    while len(ResultTable(killed).steps()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert 0 < len(list(ResultTable(killed).entries())) < len(STEPS), "the kill has to come half-way"
    sweep(source, slow, killed, STEPS, Inline())
    pd.testing.assert_frame_equal(table_of(killed), table_of(clean))


def hold_the_lock_of_bars_and_die() -> None:
    tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_while_it_drew_a_bar_does_not_stop_a_sweep(source: LocalFolders, tmp_path: Path) -> None:
    tqdm.set_lock(TqdmDefaultWriteLock())  # what tqdm makes by itself: shared with every process that is forked
    process = FORK.Process(target=hold_the_lock_of_bars_and_die)
    process.start()
    process.join()
    worker = threading.Thread(
        target=sweep, args=(source, [Norms(log=tmp_path / "log")], tmp_path / "results", [3], Inline()), daemon=True
    )
    worker.start()
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert ResultTable(tmp_path / "results").steps() == [3]


def test_two_sweeps_at_once_measure_every_checkpoint_once(source: LocalFolders, tmp_path: Path) -> None:
    clean, shared, log = tmp_path / "clean", tmp_path / "shared", tmp_path / "log"
    sweep(source, [Norms(log=tmp_path / "clean.log")], clean, STEPS, Inline())
    slow = [Norms(log=log, seconds=0.2)]
    processes = [FORK.Process(target=sweep, args=(source, slow, shared, STEPS, Inline())) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    pd.testing.assert_frame_equal(table_of(shared), table_of(clean))
    assert runs_of(log) == [f"norms {step}" for step in STEPS]


def test_results_say_which_weights_they_are_of(source: LocalFolders, tmp_path: Path) -> None:
    sweep(source, [Norms(log=tmp_path / "log")], tmp_path / "results", [3], Inline())
    stamp = ResultTable(tmp_path / "results").stamp(3, "norms")
    record = json.loads((tmp_path / "results" / "identity" / "step_00000003.json").read_text())
    assert stamp is not None
    assert stamp["identity_sha256"] == record["weights_sha256"]
    assert len(record["weights_sha256"]) == 64
    assert stamp["dtype"] == "float32"
    assert stamp["parameters"] == 8 * 8 * 12 + 8 * 17, "twelve matrices of a block, biases and norms; no embeddings"


def test_tasks_may_be_single_analyses(source: LocalFolders, tmp_path: Path) -> None:
    analyses = [Norms(log=tmp_path / "log", name=name) for name in ("one", "two")]
    tasks = plan(source, analyses, tmp_path / "results", [1, 2], split="analysis")
    assert [(task.checkpoint.id.step, task.analyses[0].name) for task in tasks] == [
        (1, "one"),
        (1, "two"),
        (2, "one"),
        (2, "two"),
    ]
    sweep(source, analyses, tmp_path / "results", [1, 2], Inline(), split="analysis")
    assert len(table_of(tmp_path / "results").groupby(["step", "analysis"])) == 4


@dataclass(kw_only=True)
class Against(Norms):
    """Norms that are held against random networks."""

    default_name: ClassVar[str] = "against"
    needs_null: ClassVar[bool] = True


@dataclass(kw_only=True)
class Alone(Against):
    """Remembers the checkpoint, and asks at every random network whether it is in memory still."""

    default_name: ClassVar[str] = "alone"
    models: ClassVar[list[weakref.ref]] = []

    def measure(self, snapshot: Snapshot) -> Iterable[Row]:
        alive = sum(model() is not None for model in self.models)
        self.models.append(weakref.ref(snapshot.model))
        places = getattr(snapshot.model, "hf_device_map", {})
        yield Row(metric="alive", value=float(alive))
        yield Row(metric="on_disk", value=float("disk" in places.values()))


def test_checkpoint_and_random_networks_are_in_memory_one_at_a_time(source: LocalFolders, tmp_path: Path) -> None:
    """And lie where the device map puts the checkpoint."""
    modules = ("word_embeddings", "word_embeddings_layernorm", "h.0", "ln_f")
    places: dict[str, int | str] = {f"transformer.{name}": "cpu" for name in modules} | {"lm_head": "cpu"}
    places["transformer.h.0"] = "disk"
    spread = replace(source, loading=Loading(device_map=places, offload_folder=tmp_path / "offload"))
    for number, (place, on_disk) in enumerate(((source, 0.0), (spread, 1.0))):
        results = tmp_path / str(number)
        [outcome] = sweep(place, [Alone(log=tmp_path / "log")], results, [1], Inline(), null_networks=2)
        assert outcome.failed == {}
        for table in (ResultTable(results), *(ResultTable(null_folder(results, network)) for network in (0, 1))):
            assert [row.value for step in table.steps() for row in table.rows(step, "alone")] == [0.0, on_disk]


@pytest.mark.parametrize("split", ["checkpoint", "analysis"])
def test_random_networks_are_measured_once_for_a_suite(source: LocalFolders, tmp_path: Path, split: str) -> None:
    """Also when they are asked for after everything else was measured, and never twice."""
    results, log = tmp_path / "results", tmp_path / "log"
    analyses = [Norms(log=log), Against(log=log)]
    sweep(source, analyses, results, STEPS, Inline(), split=split)  # type: ignore[arg-type]
    assert ResultTable(results).null_band("against").empty
    for _ in range(2):
        outcomes = sweep(source, analyses, results, STEPS, Inline(), split=split, null_networks=3)  # type: ignore[arg-type]
        assert not any(outcome.failed for outcome in outcomes)
    assert log.read_text().split("\n").count("against 0") == 3
    assert "norms 0" not in log.read_text()
    band = ResultTable(results).null_band("against")
    assert sorted(set(band["network"])) == [0, 1, 2]
    assert band.groupby("layer")["value"].nunique().max() == 3, "three different networks"
    assert ResultTable(results).steps() == STEPS
    assert plan(source, analyses, results, STEPS, null_networks=3) == []
    sweep(source, analyses, results, STEPS, Inline(), split=split, null_networks=3, force=True)  # type: ignore[arg-type]
    assert log.read_text().split("\n").count("against 0") == 6, "forced, all of them are measured again"
