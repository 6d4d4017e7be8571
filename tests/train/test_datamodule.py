"""Batches are a function of seed and step, resuming is exact, and validation's bytes are those of the raw text."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from train.data.batches import TrainBatches, ValidationBatches
from train.data.mixing import Mixture, expected_epochs
from train.data.sources import LocalText
from train.data.tokenizer import save_tokenizer
from train.datamodule import MultilingualDataModule
from train.model.loss_tokens import IGNORE_INDEX

WORDS = {"de": "Grüße aus Köln", "en": "greetings from London", "zh": "来自北京的问候"}
SIZES = {"de": 60, "en": 200, "zh": 30}


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    with path.open("w") as file:
        for language, size in SIZES.items():
            for number in range(size + 6):
                split = "valid" if number >= size else "train"
                text = f"{WORDS[language]} {number} " + "y" * (number % 13)
                file.write(json.dumps({"lang": language, "text": text, "split": split}) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("data")
    save_tokenizer(byte_tokenizer, folder / "tokenizer")
    return folder


@pytest.fixture
def make_data(text_file: str, folder: Path) -> Any:
    def make(**options: Any) -> MultilingualDataModule:
        defaults = {
            "tokenizer": str(folder / "tokenizer"),
            "cache": str(folder / "cache"),
            "block_size": 32,
            "batch_size": 4,
            "validation_blocks": None,
            "validation_batch_size": 3,
        }
        return MultilingualDataModule(sources=[LocalText(text_file)], **(defaults | options))

    return make


def ready(data: MultilingualDataModule) -> MultilingualDataModule:
    data.prepare_data()
    data.setup()
    return data


def rows(batches: TrainBatches) -> list[tuple[int, ...]]:
    return [tuple(row.tolist()) for batch in batches for row in batch["input_ids"]]


class Recorder(pl.LightningModule):
    """Trains one number and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: list[tuple[int, list[list[int]]]] = []
        self.bytes: Counter[int] = Counter()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append((self.trainer.global_step, batch["input_ids"].tolist()))
        return self.weight.sum() * batch["input_ids"].double().mean().float()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.bytes[dataloader_idx] += int(batch["num_bytes"].sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def make_trainer(folder: Path, max_steps: int, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **({"enable_checkpointing": False, "limit_val_batches": 0} | options),
    )


def train(data: MultilingualDataModule, folder: Path, max_steps: int, **options: Any) -> Recorder:
    resume = options.pop("resume", None)
    module = Recorder()
    trainer = make_trainer(folder, max_steps, **options)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module


# -- batches ----------------------------------------------------------------------------------------------------------


def test_blocks_are_single_language_and_each_is_read_once_per_epoch(make_data: Any) -> None:
    data = ready(make_data(mixing=Mixture(alpha=1.0)))
    batches = data.train_batches(num_steps=400)
    blocks = {}
    for language in data.languages:
        stream = data.prepared_text.tokens(language, "train")
        blocks[language] = [tuple(stream.read(start, 32).tolist()) for start in range(0, len(stream) - 31, 32)]
    language_of = {block: language for language, own in blocks.items() for block in own}
    shown: dict[str, list[tuple[int, ...]]] = {language: [] for language in data.languages}
    for row in rows(batches):
        shown[language_of[row]].append(row)  # a KeyError would be a row that is no block
    for language, own in blocks.items():
        read = shown[language]
        assert len(read) >= 2 * len(own)
        assert sorted(read[: len(own)]) == sorted(own)
        assert sorted(read[len(own) : 2 * len(own)]) == sorted(own)
        assert read[: len(own)] != read[len(own) : 2 * len(own)]


def test_shares_follow_the_temperature(make_data: Any) -> None:
    data = ready(make_data(mixing=Mixture(alpha=0.5), batch_size=10))
    tokens = data.train_tokens
    total = sum(size**0.5 for size in tokens.values())
    order = data.train_batches(num_steps=300).order
    counts = dict(zip(order.languages, np.bincount(order.samples(0, 3000)[0]).tolist(), strict=True))
    for language, size in tokens.items():
        assert counts[language] / 3000 == pytest.approx(size**0.5 / total, abs=0.003)
    epochs = expected_epochs(data.probabilities, tokens, 300 * data.tokens_per_step)
    assert epochs["zh"] == pytest.approx(counts["zh"] * 32 / tokens["zh"], rel=0.03)
    assert epochs["zh"] > epochs["en"]


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_global_batch_does_not_depend_on_how_it_is_divided(make_data: Any, world_size: int, accumulate: int) -> None:
    data = ready(make_data(batch_size=8))
    whole = data.train_batches(num_steps=5)
    parts = [
        data.train_batches(num_steps=5, world_size=world_size, rank=rank, accumulate=accumulate)
        for rank in range(world_size)
    ]
    for step in range(5):
        divided = [
            part.batch(step * accumulate + micro_batch)["input_ids"]
            for micro_batch in range(accumulate)
            for part in parts
        ]
        assert all(len(piece) == 8 // (world_size * accumulate) for piece in divided)
        assert torch.equal(torch.cat(divided), whole.batch(step)["input_ids"])


def test_seed_changes_the_order_and_nothing_else_does(make_data: Any) -> None:
    first = rows(ready(make_data(seed=1)).train_batches(num_steps=20))
    assert first == rows(ready(make_data(seed=1)).train_batches(num_steps=20))
    assert first != rows(ready(make_data(seed=2)).train_batches(num_steps=20))


def test_labels_are_the_inputs_and_masks_follow_the_documents(make_data: Any) -> None:
    data = ready(make_data(document_masks=True))
    batch = data.train_batches(num_steps=1).batch(0)
    assert torch.equal(batch["input_ids"], batch["labels"])
    assert batch["input_ids"].dtype == torch.int64
    for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
        starts = (ids == 2).nonzero().flatten().tolist()
        assert starts
        assert segments[-1] - segments[0] == len([start for start in starts if start])
    assert "segment_ids" not in ready(make_data()).train_batches(num_steps=1).batch(0)


def test_batch_size_must_divide(make_data: Any) -> None:
    with pytest.raises(ValueError, match="batch_size 4 is not divisible by 3 devices x 1 accumulated"):
        ready(make_data()).train_batches(num_steps=1, world_size=3)


# -- the loader under Lightning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_trainer_sees_the_schedule_in_order_and_ends_at_max_steps(
    make_data: Any, tmp_path: Path, num_workers: int
) -> None:
    module = train(make_data(num_workers=num_workers), tmp_path, max_steps=7, accumulate_grad_batches=2)
    assert [step for step, _ in module.seen] == [step for step in range(7) for _ in range(2)]
    expected = rows(ready(make_data()).train_batches(num_steps=7, accumulate=2))
    assert [tuple(row) for _, batch in module.seen for row in batch] == expected


@pytest.mark.parametrize(("num_workers", "accumulate", "stop"), [(0, 1, 3), (0, 2, 5), (2, 2, 4)])
def test_resuming_continues_exactly(
    make_data: Any, tmp_path: Path, num_workers: int, accumulate: int, stop: int
) -> None:
    options = {"accumulate_grad_batches": accumulate}
    straight = train(make_data(), tmp_path, max_steps=9, **options)
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=stop, save_top_k=-1)
    train(make_data(), tmp_path, 9, callbacks=[saver], enable_checkpointing=True, **options)
    data = make_data(num_workers=num_workers)
    resumed = train(data, tmp_path, 9, resume=tmp_path / f"step={stop}.ckpt", **options)
    assert resumed.seen == straight.seen[stop * accumulate :]
    assert torch.equal(resumed.weight, straight.weight)


def test_a_finished_run_can_be_made_longer(make_data: Any, tmp_path: Path) -> None:
    straight = train(make_data(), tmp_path, max_steps=8)
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "last", every_n_train_steps=5)
    train(make_data(), tmp_path, 5, callbacks=[saver], enable_checkpointing=True)
    resumed = train(make_data(), tmp_path, 8, resume=tmp_path / "last.ckpt")
    assert resumed.seen == straight.seen[5:]
    assert torch.equal(resumed.weight, straight.weight)


def test_changed_settings_are_named_on_resume_and_can_be_allowed(
    make_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "last", every_n_train_steps=2)
    train(make_data(), tmp_path, 2, callbacks=[saver], enable_checkpointing=True)
    checkpoint = tmp_path / "last.ckpt"
    for options, message in (
        ({"batch_size": 8, "block_size": 16}, "batch_size 4 -> 8; block_size 32 -> 16"),
        ({"seed": 3}, "seed 0 -> 3"),
        ({"mixing": Mixture(weights={"de": 1, "en": 1, "zh": 2})}, "mixing .*alpha.* -> .*weights"),
        ({"languages": ["de", "en"]}, r"fingerprint .* languages \['de', 'en', 'zh'\] -> \['de', 'en'\]"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            train(make_data(**options), tmp_path, 4, resume=checkpoint)
        assert "--allow_changes true" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="accumulate_grad_batches 1 -> 2"):
        train(make_data(), tmp_path, 4, resume=checkpoint, accumulate_grad_batches=2)
    allowed = make_data(batch_size=8, block_size=16)
    allowed.allow_changes = True
    module = train(allowed, tmp_path, 4, resume=checkpoint)
    assert len(module.seen[0][1]) == 8
    assert "batch_size 4 -> 8" in caplog.text
    for options, sizes in (({"batch_size": 8}, "256 .8 x 32."), ({"block_size": 16}, "64 .4 x 16.")):
        other = make_data(**options)
        other.allow_changes = True
        with pytest.raises(ValueError, match=f"took 128 tokens .*4 x data.block_size 32.* would take {sizes}"):
            train(other, tmp_path, 4, resume=checkpoint)
    trainer = make_trainer(tmp_path, 4, limit_val_batches=1.0)
    trainer.validate(Recorder(), datamodule=make_data(batch_size=8), ckpt_path=checkpoint, verbose=False)


def test_state_names_the_world_size(make_data: Any) -> None:
    data = ready(make_data())
    state = data.state_dict()
    assert json.loads(json.dumps(state)) == state  # loads with weights_only=True
    with pytest.raises(ValueError, match="world_size 2 -> 1"):
        data.load_state_dict(state | {"world_size": 2})
    data.load_state_dict(state)


class FileRecorder(Recorder):
    """Leaves what this rank saw in a file, because it runs in another process."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self) -> None:
        path = self.folder / f"rank{self.global_rank}.json"
        path.write_text(json.dumps({"seen": [batch for _, batch in self.seen], "bytes": self.bytes}))


@pytest.mark.slow  # quick, but it forks, which other tests' threads do not always survive
@pytest.mark.parametrize("use_distributed_sampler", [True, False])
def test_two_processes_share_each_global_batch_and_the_validation_text(
    make_data: Any, text_file: str, tmp_path: Path, use_distributed_sampler: bool
) -> None:
    data = ready(make_data())
    trainer = make_trainer(
        tmp_path,
        4,
        limit_val_batches=1.0,
        val_check_interval=4,
        devices=2,
        strategy="ddp_fork",
        use_distributed_sampler=use_distributed_sampler,
    )
    trainer.fit(FileRecorder(tmp_path), datamodule=data)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    shared = [row for pair in zip(first["seen"], second["seen"], strict=True) for batch in pair for row in batch]
    assert [tuple(row) for row in shared] == rows(data.train_batches(num_steps=4))
    for index, language in enumerate(data.languages):
        assert first["bytes"][str(index)] + second["bytes"][str(index)] == raw_bytes(text_file, language)


def test_length_must_be_given_in_steps(make_data: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_steps must be given"):
        train(make_data(), tmp_path, max_steps=-1, max_epochs=1)
    with pytest.raises(RuntimeError, match="prepare_data"):
        make_data().fingerprint  # noqa: B018


def test_batches_travel_to_workers_without_their_maps(make_data: Any) -> None:
    batches = ready(make_data()).train_batches(num_steps=3)
    shown = rows(batches)
    copy = pickle.dumps(batches)
    assert len(copy) < 20_000
    assert rows(pickle.loads(copy)) == shown


# -- validation -------------------------------------------------------------------------------------------------------


def raw_bytes(text_file: str, language: str) -> int:
    records = [json.loads(line) for line in Path(text_file).read_text().splitlines()]
    return sum(len(r["text"].encode()) for r in records if (r["lang"], r["split"]) == (language, "valid"))


def test_validation_covers_every_byte_of_the_raw_text_once(make_data: Any, text_file: str, tmp_path: Path) -> None:
    data = make_data()
    module = Recorder()
    make_trainer(tmp_path, 1, limit_val_batches=1.0).validate(module, datamodule=data, verbose=False)
    assert data.validation_languages == ("de", "en", "zh")
    assert module.bytes == {i: raw_bytes(text_file, language) for i, language in enumerate(("de", "en", "zh"))}
    for batches in data._validation_batches():
        # the byte tokenizer has one byte a token: predictions and bytes are the same number
        predicted = [row[row != IGNORE_INDEX] for batch in batches for row in batch["labels"][:, 1:]]
        stream = data.prepared_text.tokens(batches.language, "valid").read(0, 10**9)
        assert torch.cat(predicted).tolist() == stream[stream != 2].tolist()
        for batch in batches:
            assert (batch["labels"][:, 0] == IGNORE_INDEX).all()
            assert batch["num_bytes"].tolist() == (batch["labels"] != IGNORE_INDEX).sum(-1).tolist()


def test_capped_validation_counts_the_bytes_of_what_it_predicts(make_data: Any) -> None:
    data = ready(make_data(validation_blocks=2, validation_batch_size=1))
    for batches in data._validation_batches():
        shown = list(batches)
        assert len(shown) == len(batches) == 2
        assert sum(int(batch["num_bytes"]) for batch in shown) == sum(
            int((batch["labels"] != IGNORE_INDEX).sum()) for batch in shown
        )


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_divide_validation_without_loss_or_repetition(make_data: Any, world_size: int) -> None:
    data = ready(make_data())
    for whole, *parts in zip(
        data._validation_batches(),
        *(data._validation_batches(world_size, rank) for rank in range(world_size)),
        strict=True,
    ):
        batches = [list(part) for part in parts]
        assert len({len(part) for part in batches}) == 1  # the same number of steps on every rank
        texts = Counter(tuple(row.tolist()) for part in batches for batch in part for row in batch["labels"])
        texts.pop((IGNORE_INDEX,) * 32, None)
        assert texts == Counter(tuple(row.tolist()) for batch in whole for row in batch["labels"])
        total = sum(int(batch["num_bytes"].sum()) for part in batches for batch in part)
        assert total == sum(int(batch["num_bytes"].sum()) for batch in whole)


# -- configuration ----------------------------------------------------------------------------------------------------


def test_a_missing_tokenizer_is_trained_once_with_its_stated_size(
    make_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = make_data(tokenizer=str(tmp_path / "new"), vocab_size=290, cache=str(tmp_path / "cache"))
    assert data.vocab_size == 290
    assert data.tokens_per_step == 128
    ready(data)
    assert len(data.tokenizer) == data.vocab_size == 290
    table = [record.message.split() for record in caplog.records if record.message.startswith(("de ", "zh "))]
    assert [row[2] for row in table] == [table[0][2], "-"]  # tokens per word, where there are words
    stamp = (tmp_path / "new" / "tokenizer.json").stat().st_mtime_ns
    again = ready(make_data(tokenizer=str(tmp_path / "new"), vocab_size=290, cache=str(tmp_path / "cache")))
    assert (tmp_path / "new" / "tokenizer.json").stat().st_mtime_ns == stamp
    assert again.fingerprint == data.fingerprint
    assert "without effect" not in caplog.text
    ready(make_data(tokenizer=str(tmp_path / "new"), vocab_size=400, cache=str(tmp_path / "cache")))
    assert re.search(r"data.vocab_size 400 is without effect: .*new has 290 tokens already", caplog.text)


def test_prepared_text_serves_without_its_sources(make_data: Any, folder: Path) -> None:
    data = ready(make_data())
    moved = MultilingualDataModule(
        sources=[],
        tokenizer=str(folder / "tokenizer"),
        prepared=str(data.prepared_text.folder),
        block_size=32,
        batch_size=4,
        languages=["en", "zh"],
    )
    ready(moved)
    assert moved.languages == ("en", "zh")
    assert moved.train_tokens == {language: data.train_tokens[language] for language in ("en", "zh")}
    with pytest.raises(ValueError, match="unknown language sw: .* has de, en, zh"):
        MultilingualDataModule([], "x", prepared=str(data.prepared_text.folder), languages=["sw"]).prepare_data()


def test_prepared_text_is_refused_where_it_holds_what_is_to_be_left_out(make_data: Any, tmp_path: Path) -> None:
    concepts = tmp_path / "concepts.jsonl"
    concepts.write_text(json.dumps({"lang": "en", "text": f"{WORDS['en']} 0 "}) + "\n")
    whole, without = ready(make_data()), ready(make_data(exclude=[str(concepts)]))
    assert without.prepared_text.counts("en", "train")["excluded"] > 0
    ready(make_data(exclude=[str(concepts)], prepared=str(without.prepared_text.folder)))
    with pytest.raises(ValueError, match=r"was prepared without data\.exclude .*concepts\.jsonl"):
        make_data(exclude=[str(concepts)], prepared=str(whole.prepared_text.folder)).prepare_data()


def test_settings_that_cannot_work_are_refused_in_one_line(
    make_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"data\.block_size must be at least 2, got 1"):
        make_data(block_size=1)
    with pytest.raises(ValueError, match="unknown language sw: the sources offer de, en, zh"):
        make_data(languages=["en", "sw"]).prepare_data()
    with pytest.raises(ValueError, match="weights for sw"):
        make_data(mixing=Mixture(weights={"de": 1, "en": 1, "zh": 1, "sw": 1})).prepare_data()
    with pytest.raises(ValueError, match="de: .* less than one block of 4096"):
        ready(make_data(block_size=4096))
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        make_data(cache=str(tmp_path / "empty")).setup()
    with pytest.raises(FileNotFoundError, match="no tokenizer there"):
        make_data(tokenizer=str(tmp_path / "none")).prepare_data()
    budget = {"de": 1000, "en": 1000, "zh": 2000}
    with caplog.at_level(logging.WARNING):
        train(make_data(mixing=Mixture(token_budget=budget)), tmp_path, max_steps=2)
    assert "the run reads 256 tokens, the budgets sum to 4,000" in caplog.text


def test_yaml_configures_the_module(text_file: str, folder: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MultilingualDataModule, "data")
    section = {
        "sources": [{"class_path": "train.data.sources.LocalText", "init_args": {"path": text_file}}],
        "tokenizer": str(folder / "tokenizer"),
        "cache": str(folder / "cache"),
        "mixing": {"weights": {"de": 1, "en": 2, "zh": 1}},
        "block_size": 32,
    }
    data = parser.instantiate_classes(parser.parse_object({"data": section})).data
    assert ready(data).probabilities == {"de": 0.25, "en": 0.5, "zh": 0.25}
    assert isinstance(data._validation_batches()[0], ValidationBatches)
