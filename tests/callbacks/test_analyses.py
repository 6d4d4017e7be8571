"""Live analysis: nothing of it reaches the training, whatever the analysis does."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from analysis.base import Analysis, Attachment, Row
from analysis.checkpoints.loading import Loading
from analysis.checkpoints.local import RunFolder
from analysis.measures import load_analyses
from analysis.report.run import read_metrics
from analysis.results import ResultTable
from analysis.snapshots import Snapshot
from callbacks.analyses import AnalysisCallback, live_snapshot, measuring
from callbacks.checkpoint_io import newest_checkpoint
from callbacks.resume import ResumeCheckpoint
from callbacks.schedule import Schedule
from callbacks.signals import StoppedBySignal
from callbacks.snapshots import SnapshotWriter
from callbacks.tracking import Tracker


@dataclass(kw_only=True)
class Nosy(Analysis):
    """Measures the mean logit, and does everything that an analysis must not be able to harm."""

    default_name: ClassVar[str] = "nosy"

    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        random.random(), np.random.rand(3), torch.rand(5)
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in snapshot.model.modules())
        logits = snapshot.model(input_ids=torch.arange(12)[None]).logits
        assert logits.dtype == torch.float32, "measured without autocast"
        yield Row(metric="mean_logit", value=float(logits.mean()), chance=0.0)


@dataclass(kw_only=True)
class Failing(Analysis):
    default_name: ClassVar[str] = "failing"

    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        yield Row(metric="nothing", value=0.0)
        raise RuntimeError("out of\nmemory")


class Trained(pl.LightningModule):
    """Attributes of the training module that live analysis uses, around a small model with dropout."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.losses: list[float] = []

    @property
    def tokens_seen(self) -> int:
        return self.trainer.global_step * 48

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.model(input_ids=batch, labels=batch).loss
        self.losses.append(float(loss.detach()))
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(5)
        texts = torch.randint(4, 260, (64, 24), generator=generator)
        return DataLoader(texts, batch_size=2, shuffle=True)  # type: ignore[arg-type]


def analyses_file(tmp_path: Path, *classes: type[Analysis]) -> str:
    path = tmp_path / "analyses.yaml"
    path.write_text("analyses:\n" + "".join(f"- class_path: {c.__module__}.{c.__qualname__}\n" for c in classes))
    return str(path)


@pytest.fixture
def fit(tiny_xglm: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Any:
    def run(root: Path, callbacks: list[pl.Callback], steps: int = 6, accumulate: int = 1) -> Trained:
        pl.seed_everything(7)
        model = copy.deepcopy(tiny_xglm).train()
        model.config.dropout = 0.1
        for module in model.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.1  # so that the random numbers of training matter
        module = Trained(model, byte_tokenizer)
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            precision="bf16-mixed",
            accumulate_grad_batches=accumulate,
            callbacks=callbacks,
            default_root_dir=root,
            logger=False,
            enable_checkpointing=any(isinstance(callback, ResumeCheckpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = newest_checkpoint(root)
        trainer.fit(module, ckpt_path=start, weights_only=True if start else None)
        return module

    return run


@pytest.mark.parametrize("accumulate", [1, 2])
def test_instrumentation_leaves_weights_bit_identical(fit: Any, tmp_path: Path, accumulate: int) -> None:
    listed = analyses_file(tmp_path, Nosy)
    plain = fit(tmp_path / "off", [], accumulate=accumulate)
    callbacks = [AnalysisCallback(listed, Schedule(base=2)), Tracker(mode="offline", every_n_steps=1)]
    watched = fit(tmp_path / "on", callbacks, accumulate=accumulate)
    assert plain.losses == watched.losses
    for (name, expected), (_, found) in zip(plain.named_parameters(), watched.named_parameters(), strict=True):
        assert torch.equal(expected, found), name
    assert ResultTable(tmp_path / "on" / "results").steps() == [0, 1, 2, 4, 6]


def test_rows_and_headlines_are_recorded_once_a_scheduled_step(fit: Any, tmp_path: Path) -> None:
    listed = analyses_file(tmp_path, Nosy)
    root = tmp_path / "run"
    fit(root, [AnalysisCallback(listed, Schedule(base=2)), Tracker(mode="disabled", every_n_steps=2)])
    rows = [row for row in read_metrics(root / "metrics.jsonl") if row["kind"] == "analysis"]
    assert [row["step"] for row in rows] == [0, 1, 2, 4, 6]
    assert [row["tokens"] for row in rows] == [0, 48, 96, 192, 288]
    for row in rows:
        assert set(row["values"]) == {
            "nosy/mean_logit",
            "analysis_cost/seconds/nosy",
            "analysis_cost/share",
            "analysis_cost/failures",
        }
        assert 0 < row["values"]["analysis_cost/share"] < 1
    assert [row["step"] for row in read_metrics(root / "metrics.jsonl") if row["kind"] == "train"] == [2, 4, 6]
    page = (root / "report.html").read_text(encoding="utf-8")
    assert "mean logit" in page, "the report is renewed at every step that was measured"


@dataclass(kw_only=True)
class Sparse(Nosy):
    default_name: ClassVar[str] = "sparse"


def test_two_callbacks_with_schedules_of_their_own_record_side_by_side(fit: Any, tmp_path: Path) -> None:
    often = AnalysisCallback(analyses_file(tmp_path, Nosy), Schedule(base=None, every=2))
    (tmp_path / "other").mkdir()
    listed = analyses_file(tmp_path / "other", Sparse)
    seldom = AnalysisCallback(listed, Schedule(base=None, steps=(4,), last=False), record_as="steering")
    assert often.state_key != seldom.state_key, "or Lightning would give both the state of one"
    root = tmp_path / "run"
    fit(root, [often, seldom, Tracker(mode="disabled")])
    rows = [(row["kind"], row["step"]) for row in read_metrics(root / "metrics.jsonl") if row["kind"] != "train"]
    assert rows == [("analysis", 0), ("analysis", 2), ("analysis", 4), ("steering", 4), ("analysis", 6)]
    [row] = [row for row in read_metrics(root / "metrics.jsonl") if row["kind"] == "steering"]
    assert set(row["values"]) == {
        "sparse/mean_logit",
        "analysis_cost/seconds/sparse",
        "steering_cost/share",
        "steering_cost/failures",
    }
    with pytest.raises(ValueError, match="record_as is 'train'"):
        AnalysisCallback(listed, Schedule(), record_as="train")


def test_a_failing_analysis_is_named_and_the_others_and_the_training_go_on(
    fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = analyses_file(tmp_path, Failing, Nosy)
    plain = fit(tmp_path / "off", [])
    with caplog.at_level(logging.ERROR):
        callback = AnalysisCallback(listed, Schedule(base=None, steps=(0, 3), last=False))
        watched = fit(tmp_path / "on", [callback, Tracker(mode="disabled")])
    assert "step 3: analysis 'failing' failed and is left out: RuntimeError: out of memory" in caplog.text
    assert callback.failures == 2
    table = ResultTable(tmp_path / "on" / "results")
    assert list(table.entries()) == [(0, "nosy"), (3, "nosy")]
    assert plain.losses == watched.losses
    assert watched.model.training, "train mode is back"


def test_a_result_that_cannot_be_read_does_not_end_the_training(
    fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def damaged(*_: Any) -> bool:
        raise OSError("Couldn't deserialize thrift")

    monkeypatch.setattr(ResultTable, "has", damaged)
    callback = AnalysisCallback(analyses_file(tmp_path, Nosy), Schedule(base=None, steps=(3,)), null_networks=0)
    assert len(fit(tmp_path / "run", [callback, Tracker(mode="disabled")]).losses) == 6
    assert "step 3: analysis 'nosy' failed and is left out: OSError: Couldn't deserialize thrift" in caplog.text
    assert "step 3: the record failed" in caplog.text


@dataclass(kw_only=True)
class Told(Nosy):
    """A signal comes while it measures step 2, once."""

    default_name: ClassVar[str] = "told"
    already: ClassVar[bool] = False

    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        if snapshot.id.step == 2 and not Told.already:
            Told.already = True
            os.kill(os.getpid(), signal.SIGTERM)
        return super().measure(snapshot)


def test_a_stop_leaves_the_analyses_that_have_not_begun_to_the_next_start(
    fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Told, "already", False)
    listed, root = analyses_file(tmp_path, Told, Nosy), tmp_path / "run"

    def callbacks() -> list[pl.Callback]:
        return [AnalysisCallback(listed, Schedule(), null_networks=0), Tracker(mode="disabled"), ResumeCheckpoint()]

    with pytest.raises(StoppedBySignal):
        fit(root, callbacks())
    table = ResultTable(root / "results")
    assert list(table.entries())[-2:] == [(1, "told"), (2, "told")]
    fit(root, callbacks())
    assert list(table.entries())[4:] == [(step, name) for step in (2, 4, 6) for name in ("nosy", "told")]
    rows = [row for row in read_metrics(root / "metrics.jsonl") if row["kind"] == "analysis"]
    assert [(row["step"], "nosy/mean_logit" in row["values"]) for row in rows] == [
        (step, True) for step in (0, 1, 2, 4, 6)
    ]


def test_the_run_is_named_as_its_snapshots_name_it(fit: Any, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "latest").symlink_to("demo")
    schedule = Schedule(base=None)
    listed = analyses_file(tmp_path, Nosy)
    fit(tmp_path / "latest", [SnapshotWriter(schedule), AnalysisCallback(listed, schedule, null_networks=0)])
    [identity] = RunFolder(path=tmp_path / "demo").ids()
    assert ResultTable(tmp_path / "demo" / "results").has(identity, load_analyses(listed)[0])


def test_measuring_puts_every_flag_back_also_after_an_error(tiny_xglm: PreTrainedModel) -> None:
    model = copy.deepcopy(tiny_xglm).train()
    frozen = model.model.layers[0].eval()  # somebody keeps one block in eval mode on purpose
    before = torch.get_rng_state()

    def measure() -> None:
        with measuring(model):
            assert not model.training
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        measure()
    assert model.training
    assert not frozen.training
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


def test_over_budget_steps_are_left_to_the_post_hoc_runner(
    fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = analyses_file(tmp_path, Nosy)
    callback = AnalysisCallback(listed, Schedule(base=None, every=1), max_share=1e-9)
    with caplog.at_level(logging.WARNING):
        fit(tmp_path / "run", [callback, Tracker(mode="disabled")])
    assert ResultTable(tmp_path / "run" / "results").steps() == [0, 6], "the first and the last are always measured"
    assert "measure it later with `python -m analysis run`" in caplog.text


def test_over_budget_steps_are_those_of_any_rank(fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def agree(trainer: pl.Trainer, over: int) -> list[int]:
        return [max(over, trainer.global_step == 3)]  # another rank, whose clock says so

    monkeypatch.setattr("callbacks.analyses.agree", agree)
    callback = AnalysisCallback(
        analyses_file(tmp_path, Nosy), Schedule(base=None, every=1), max_share=0.999, null_networks=0
    )
    fit(tmp_path / "run", [callback])
    assert ResultTable(tmp_path / "run" / "results").steps() == [0, 1, 2, 4, 5, 6]


def test_a_module_without_a_model_is_named(tmp_path: Path) -> None:
    trainer = pl.Trainer(default_root_dir=tmp_path, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="LightningModule has no attribute 'model'"):
        live_snapshot(trainer, pl.LightningModule())


def test_bad_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        AnalysisCallback(str(tmp_path / "none.yaml"), Schedule())
    with pytest.raises(ValueError, match="max_share is 2"):
        AnalysisCallback(analyses_file(tmp_path, Nosy), Schedule(), max_share=2)


def parallel_file(tmp_path: Path) -> tuple[str, str]:
    """Real parallel text of three languages (probe, loss) and a concept file over it."""
    table = pq.read_table(Path(__file__).resolve().parents[2] / "data" / "embedded_cdda10.parquet").to_pandas()
    table = table[table["lang"].isin(["de", "en", "ru"])].groupby(["lang", "split"], sort=False).head(30)
    texts = tmp_path / "texts.parquet"
    table.to_parquet(texts)
    train = table[table["split"] == "train"]
    order = {key: place for place, key in enumerate(train["sent_id"].unique())}
    rows = [
        {"concept": concept, "language": row.lang, "uid": row.sent_id, "text": row.text, "split": "train"}
        | {"label": int(order[row.sent_id] % every == 0)}
        for row in train.itertuples()
        for concept, every in (("even", 2), ("third", 3))
    ]
    concepts = tmp_path / "concepts.jsonl"
    concepts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(texts), str(concepts)


def test_live_rows_equal_post_hoc_rows_of_the_same_step(fit: Any, tmp_path: Path) -> None:
    texts, concepts = parallel_file(tmp_path)
    listed = tmp_path / "analyses.yaml"
    entries = [
        {"class_path": "HeldOutLoss", "init_args": {"texts": texts, "num_bootstrap": 20}},
        {
            "class_path": "LanguageProbe",
            "init_args": {"texts": texts, "tokens_per_language": 60, "test_tokens_per_language": 30, "seeds": [0]},
        },
        {
            "class_path": "ConceptOverlap",
            "init_args": {"concepts": concepts, "k": 10, "min_positives": 5, "bootstrap": 20, "negatives": "all"},
        },
    ]
    listed.write_text(yaml.safe_dump({"analyses": entries}))
    schedule = Schedule(base=None, steps=(0, 3), last=False)
    root = tmp_path / "run"
    fit(root, [SnapshotWriter(schedule), AnalysisCallback(str(listed), schedule), Tracker(mode="disabled")])

    live, source = ResultTable(root / "results"), RunFolder(path=root, loading=Loading(check_tokenizer=False))
    assert [identity.step for identity in source.ids()] == [0, 3]
    for identity in source.ids():
        with source.open(identity) as snapshot:
            for analysis in load_analyses(listed):
                assert live.has(identity, analysis), "live results count as done post hoc"
                post_hoc = [row for row in analysis.measure(snapshot) if isinstance(row, Row)]
                assert post_hoc == live.rows(identity.step, analysis.name), analysis.name
                assert len(post_hoc) > 5
