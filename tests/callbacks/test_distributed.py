"""Two processes over gloo: the losses, weights, bits per byte and analyses of one, and skipped steps agreed upon."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.report.run import read_metrics
from analysis.results import ResultTable

ROOT = Path(__file__).resolve().parents[2]

WORKER = '''
"""Train a tiny model; micro-batch i goes to rank i % world, or is accumulated.

Usage: world (clean | poison | failing) folder.
"""
import json, math, sys
from pathlib import Path
from types import SimpleNamespace
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset
from callbacks.analyses import AnalysisCallback
from callbacks.schedule import Schedule
from callbacks.tracking import Tracker
from train.module import LanguageModelingModule
from train.optim import OptimizerOptions

world, poison, folder = int(sys.argv[1]), sys.argv[2] == "poison", Path(sys.argv[3])
torch.set_num_threads(1)


class Blocks(Dataset):
    def __init__(self, count, seed, num_bytes=0):
        self.tokens = torch.randint(4, 64, (count, 10), generator=torch.Generator().manual_seed(seed))
        self.num_bytes = num_bytes

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        labels = self.tokens[index].clone()
        labels[: (3 * index) % 8] = -100  # ranks hold different numbers of label tokens
        return {"input_ids": self.tokens[index], "labels": labels, "num_bytes": self.num_bytes + index}


class Data(pl.LightningDataModule):
    tokenizer = SimpleNamespace()
    vocab_size, block_size, tokens_per_step = 64, 10, 80
    languages = validation_languages = ("de", "en")

    def loader(self, blocks, size):
        chunks = [list(range(i, min(i + size, len(blocks)))) for i in range(0, len(blocks), size)]
        return DataLoader(blocks, batch_sampler=chunks[self.trainer.global_rank :: self.trainer.world_size])

    def train_dataloader(self):
        return self.loader(Blocks(48, 1), 4)

    def val_dataloader(self):
        return [self.loader(Blocks(5, seed, 30), 2) for seed in (2, 3)]  # three batches for two ranks


class Poisoned(LanguageModelingModule):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if poison and self.global_rank == 1 and self.global_step == 1:
            loss = loss * math.nan  # a gradient that is not finite on one rank
        if poison and self.global_rank == 1 and self.global_step == 3:
            self._nats = self._nats * math.inf  # a loss that is not finite on one rank
        return loss


class Record(pl.Callback):
    def __init__(self):
        self.losses = {}

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step:
            self.losses[trainer.global_step] = float(trainer.callback_metrics["train/loss"])


torch.manual_seed(5)
module = Poisoned(
    d_model=16, num_layers=2, attention_heads=2, ffn_dim=32, vocab_size=64, max_position_embeddings=16,
    optimizer=OptimizerOptions(lr=1e-2, warmup_steps=1),
)
record = Record()
names = ("Nosy", "Failing" if sys.argv[2] == "failing" else "Sparse")  # one for each rank
listed = folder / "analyses.yaml"
listed.write_text("analyses:\\n" + "".join(f"- class_path: tests.callbacks.test_analyses.{name}\\n" for name in names))
analyses = AnalysisCallback(str(listed), Schedule(base=2), max_share=0.999, null_networks=0)
trainer = pl.Trainer(
    default_root_dir=folder, accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_steps=6,
    accumulate_grad_batches=2 // world, gradient_clip_val=0.5, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    callbacks=[record, analyses, Tracker(mode="disabled", figures=False)],
)
trainer.fit(module, datamodule=Data())
scores = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/bits")}
result = {
    "losses": record.losses, "scores": scores, "skipped": module.skipped_steps, "tokens": module.tokens_seen,
    "weights": {name: tensor.flatten().tolist() for name, tensor in module.state_dict().items()},
}
(folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(result))
'''


def train(folder: Path, world: int, kind: str = "clean") -> list[dict[str, Any]]:
    """Results of all ranks."""
    folder.mkdir()
    script = folder / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    environment |= {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # loopback only
    done = subprocess.run(
        [sys.executable, str(script), str(world), kind, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(world)]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_same_global_batch(tmp_path: Path) -> None:
    (alone,) = train(tmp_path / "one", 1)
    ranks = train(tmp_path / "two", 2)
    assert ranks[0] == ranks[1]
    assert ranks[0]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert ranks[0]["scores"] == pytest.approx(alone["scores"], rel=1e-5)
    assert set(alone["scores"]) == {f"val/bits_per_byte/{name}" for name in ("de", "en", "mean")}
    assert ranks[0]["tokens"] == alone["tokens"] == 6 * 80
    assert len(alone["losses"]) == 6
    for folder in (tmp_path / "one", tmp_path / "two"):
        entries = [(step, name) for step in (0, 1, 2, 4, 6) for name in ("nosy", "sparse")]
        assert list(ResultTable(folder / "results").entries()) == entries
        recorded = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "analysis"]
        assert [row["step"] for row in recorded] == [0, 1, 2, 4, 6]
        assert all({"nosy/mean_logit", "sparse/mean_logit"} <= row["values"].keys() for row in recorded)
    for name, values in alone["weights"].items():
        assert ranks[0]["weights"][name] == pytest.approx(values, rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(tmp_path: Path) -> None:
    ranks = train(tmp_path / "two", 2, "poison")
    assert [rank["skipped"] for rank in ranks] == [2, 2]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert all(value == value for values in ranks[0]["weights"].values() for value in values)
    assert ranks[0]["losses"]["2"] == ranks[0]["losses"]["1"]  # nothing was logged for the skipped step


@pytest.mark.slow
def test_analyses_that_fail_on_another_rank_are_counted(tmp_path: Path) -> None:
    train(tmp_path / "two", 2, "failing")
    recorded = [row for row in read_metrics(tmp_path / "two" / "metrics.jsonl") if row["kind"] == "analysis"]
    assert {row["step"]: row["values"]["analysis_cost/failures"] for row in recorded} == {0: 1, 1: 2, 2: 3, 4: 4, 6: 5}
