"""The training step, validation, skipped steps and the compiled callable, on a two-layer model and made-up tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from train.flops import flops_per_token
from train.metrics import LanguageLoss, bits_per_byte, perplexity
from train.module import LanguageModelingModule, TrainingDivergedError
from train.optim import OptimizerOptions
from train.throughput import ThroughputMeter

ROOT = Path(__file__).resolve().parents[2]
SIZES: dict[str, Any] = {"vocab_size": 384, "d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 32}
BLOCK = 12


class Blocks(Dataset):
    """`count` blocks of random tokens; some labels are masked so that micro-batches differ in label tokens."""

    def __init__(self, count: int, seed: int, masked: bool, num_bytes: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(4, 384, (count, BLOCK), generator=generator)
        self.labels = self.tokens.clone()
        if masked:
            for row in range(count):
                self.labels[row, : (3 * row) % (BLOCK - 2)] = -100
        self.num_bytes = num_bytes

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"input_ids": self.tokens[index], "labels": self.labels[index]}
        if self.num_bytes:
            sample["num_bytes"] = self.num_bytes + index
        return sample


class MadeUpData(pl.LightningDataModule):
    """What the module asks of a data module, without files."""

    def __init__(self, tokenizer: Any, batch_size: int = 4, accumulate: int = 1, masked: bool = True) -> None:
        super().__init__()
        self.tokenizer, self.batch_size, self.masked = tokenizer, batch_size, masked
        self.vocab_size, self.block_size = 384, BLOCK
        self.languages = self.validation_languages = ("de", "en")
        self.tokens_per_step = batch_size * accumulate * BLOCK
        self.train_blocks = Blocks(64, 1, masked)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_blocks, self.batch_size, shuffle=False)

    def val_dataloader(self) -> list[DataLoader]:
        # 5 blocks in batches of 2: the last batch is smaller, so a mean of batch means would be wrong
        return [DataLoader(Blocks(5, 10 + i, True, num_bytes=20 + 7 * i), 2) for i in range(2)]


def make_module(**options: Any) -> LanguageModelingModule:
    torch.manual_seed(7)
    optimizer = options.pop("optimizer", OptimizerOptions(lr=1e-2, warmup_steps=1))
    return LanguageModelingModule(**{**SIZES, "max_position_embeddings": 32, "optimizer": optimizer, **options})


def make_trainer(folder: Path, steps: int, callbacks: list[Callback] | None = None, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=callbacks or [],
        **options,
    )


class Fail(Callback):
    """Breaks off within an optimizer step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        raise RuntimeError("planted")


class Record(Callback):
    """What a tracking callback sees after every optimizer step and after validation."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.validation: dict[str, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rows.append((trainer.global_step, {k: float(v) for k, v in trainer.callback_metrics.items()}))

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.validation = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}


def weights(module: pl.LightningModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_every_scalar_is_at_hand_with_the_right_step(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    record, module = Record(), make_module()
    data = MadeUpData(byte_tokenizer, masked=True)
    first = {"input_ids": data.train_blocks.tokens[:4], "labels": data.train_blocks.labels[:4]}
    expected = module.model(**first).loss.item()
    make_trainer(tmp_path, 3, [record]).fit(module, datamodule=data)
    assert [step for step, _ in record.rows] == [1, 2, 3]
    assert record.rows[0][1]["train/loss"] == pytest.approx(expected, rel=1e-5)
    for key in ("train/gradient_norm", "train/skipped_steps"):
        assert all(key in values for _, values in record.rows)
    assert all("perf/tokens_per_second" in values for _, values in record.rows[1:])
    assert not any("perf/mfu" in values for _, values in record.rows)  # the peak of a CPU is unknown
    assert module.tokens_seen == 3 * 4 * BLOCK
    assert module.tokenizer is byte_tokenizer


def test_mfu_by_hand(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.module.peak_flops", lambda device, dtype: 1e12)
    record, module = Record(), make_module()
    make_trainer(tmp_path, 2, [record]).fit(module, datamodule=MadeUpData(byte_tokenizer))
    flops = flops_per_token(module.model.config, BLOCK)
    values = record.rows[-1][1]
    assert values["perf/mfu"] == pytest.approx(values["perf/tokens_per_second"] * flops / 1e12, rel=1e-5)


def test_a_fit_that_broke_off_within_a_step_leaves_nothing_to_the_next(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    losses = []
    for broken in (False, True):
        module, record = make_module(), Record()
        data, options = MadeUpData(byte_tokenizer, accumulate=4), {"accumulate_grad_batches": 4}
        if broken:
            with pytest.raises(RuntimeError, match="planted"):
                make_trainer(tmp_path, 2, [Fail()], **options).fit(module, datamodule=data)
        make_trainer(tmp_path, 2, [record], **options).fit(module, datamodule=data)
        losses.append([(step, row["train/loss"], row["train/gradient_norm"]) for step, row in record.rows[3::4]])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_step_equals_one_large_batch_with_masked_labels(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, clip: float | None
) -> None:
    """Micro-batches hold different numbers of label tokens: a mean of means would give other gradients."""
    ends = []
    for batch, accumulate in ((8, 1), (2, 4)):
        module, record = make_module(), Record()
        data = MadeUpData(byte_tokenizer, batch_size=batch, accumulate=accumulate)
        make_trainer(tmp_path, 3, [record], accumulate_grad_batches=accumulate, gradient_clip_val=clip).fit(
            module, datamodule=data
        )
        losses = {step: values["train/loss"] for step, values in record.rows if step}  # 0: no optimizer step yet
        ends.append((weights(module), losses, module.tokens_seen))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-5)
    assert ends[0][2] == ends[1][2]
    for name, tensor in ends[0][0].items():
        torch.testing.assert_close(tensor, ends[1][0][name], rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_of_the_mean_over_label_tokens_and_are_clipped(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    seen: list[tuple[float, float]] = []

    class Gradients(Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            if grads:
                seen.append((float(torch.nn.utils.get_total_norm(grads)), float(grads[0].abs().sum())))

    module, record = make_module(), Record()
    data = MadeUpData(byte_tokenizer)
    twin = deepcopy(module.model)
    labels = data.train_blocks.labels[:4]
    twin(input_ids=data.train_blocks.tokens[:4], labels=labels).loss.backward()
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in twin.parameters()]))
    make_trainer(tmp_path, 2, [record, Gradients()], gradient_clip_val=0.25).fit(module, datamodule=data)
    assert norm > 0.25
    assert record.rows[0][1]["train/gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert seen[0][0] == pytest.approx(0.25, rel=1e-3)


def test_bits_per_byte_equals_the_sum_by_hand(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    module, data, record = make_module(), MadeUpData(byte_tokenizer), Record()
    trainer = make_trainer(tmp_path, 1, [record])
    trainer.validate(module, datamodule=data, verbose=False)
    scores = []
    for index, language in enumerate(("de", "en")):
        blocks = Blocks(5, 10 + index, True, num_bytes=20 + 7 * index)
        nats, num_bytes, num_tokens = 0.0, 0, 0
        with torch.no_grad():
            for sample in blocks:  # type: ignore[attr-defined]
                logits = module.model(input_ids=sample["input_ids"][None]).logits[0]
                logs = torch.log_softmax(logits.double(), -1)
                for position in range(1, BLOCK):
                    if (label := int(sample["labels"][position])) != -100:
                        nats -= float(logs[position - 1, label])
                        num_tokens += 1
                num_bytes += sample["num_bytes"]
        scores.append(nats / math.log(2) / num_bytes)
        assert record.validation[f"val/bits_per_byte/{language}"] == pytest.approx(scores[-1], rel=1e-5)
        assert record.validation[f"val/perplexity/{language}"] == pytest.approx(math.exp(nats / num_tokens), rel=1e-4)
    assert record.validation["val/bits_per_byte/mean"] == pytest.approx(sum(scores) / 2, rel=1e-5)


def test_bits_per_byte_of_a_uniform_byte_model_is_eight() -> None:
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8.0)
    assert perplexity(100 * math.log(256), 100) == pytest.approx(256.0)
    assert perplexity(1e6, 1) == math.inf


def test_a_language_without_text_has_no_score_and_sums_are_exact() -> None:
    metric = LanguageLoss(2)
    for _ in range(3):
        metric.update(1, torch.tensor(math.log(2) * 8), torch.tensor(4), torch.tensor(2))
    assert metric.compute() == [None, pytest.approx((2.0, 16.0))]
    metric.reset()
    assert metric.compute() == [None, None]


class Poison(Callback):
    """Makes the loss, or only the gradient, of chosen optimizer steps (from 0) not finite."""

    def __init__(self, steps: set[int], kind: str) -> None:
        self.steps, self.kind = steps, kind
        self.before: dict[int, tuple[dict[str, Tensor], Any]] = {}
        self.after: dict[int, tuple[dict[str, Tensor], Any]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.steps:
            self.before[trainer.global_step] = self._state(trainer, module)

    def on_after_backward(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.global_step not in self.steps:
            return
        if self.kind == "gradient":
            module.model.model.layers[0].fc1.weight.grad[0, 0] = math.inf
        else:
            module._nats = module._nats * math.nan

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step - 1 in self.steps:
            self.after[trainer.global_step - 1] = self._state(trainer, module)

    @staticmethod
    def _state(trainer: pl.Trainer, module: Any) -> tuple[dict[str, Tensor], Any]:
        return weights(module), deepcopy(trainer.optimizers[0].state_dict()["state"])


@pytest.mark.parametrize("kind", ["gradient", "loss"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    poison, record, module = Poison({2}, kind), Record(), make_module()
    make_trainer(tmp_path, 5, [poison, record]).fit(module, datamodule=MadeUpData(byte_tokenizer))
    before, after = poison.before[2], poison.after[2]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    for index, state in before[1].items():
        assert all(torch.equal(state[key], after[1][index][key]) for key in state)
    assert module.skipped_steps == 1
    assert "step 3 skipped" in caplog.text
    assert [values["train/skipped_steps"] for _, values in record.rows] == [0, 0, 1, 1, 1]
    assert all(torch.isfinite(tensor).all() for tensor in weights(module).values())
    assert not torch.equal(weights(module)["model.lm_head.weight"], after[0]["model.lm_head.weight"])  # it went on


def test_training_ends_when_too_many_steps_are_skipped(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    module = make_module(max_skipped_steps=2)
    trainer = make_trainer(tmp_path, 20, [Poison(set(range(1, 20)), "gradient")])
    with pytest.raises(TrainingDivergedError, match=r"step 4: 3 steps .* model.max_skipped_steps=2"):
        trainer.fit(module, datamodule=MadeUpData(byte_tokenizer))


def test_skipped_steps_survive_a_checkpoint(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    module, data = make_module(), MadeUpData(byte_tokenizer)
    trainer = make_trainer(tmp_path, 3, [Poison({1}, "gradient")])
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    again = make_module()
    make_trainer(tmp_path, 5).fit(again, datamodule=data, ckpt_path=tmp_path / "end.ckpt", weights_only=True)
    assert again.skipped_steps == 1
    assert again.tokens_seen == 5 * 4 * BLOCK


def test_time_of_callbacks_is_not_training_time(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def slow_disk(*_: Any, **__: Any) -> None:
        now[0] += 100.0

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", slow_disk)

    class SlowAnalysis(Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "slow.ckpt")

        def on_before_backward(self, *_: Any) -> None:
            now[0] += 2.0  # inside the step

        def on_train_batch_end(self, *_: Any) -> None:
            now[0] += 100.0

        def on_validation_end(self, *_: Any) -> None:
            now[0] += 100.0

    module = make_module()
    module.throughput = ThroughputMeter(clock=lambda: now[0])
    trainer = make_trainer(tmp_path, 6, [SlowAnalysis()], val_check_interval=2, check_val_every_n_epoch=None)
    trainer.fit(module, datamodule=MadeUpData(byte_tokenizer))
    assert module.throughput.tokens_per_second == pytest.approx(4 * BLOCK / 2.0)


def test_state_holds_every_weight_once_and_no_compiled_copy() -> None:
    names = set(make_module(compile=True).state_dict())
    assert names == {f"model.{name}" for name in make_module().model.state_dict()}


@pytest.mark.slow
def test_compiled_training_leaves_hooks_of_the_plain_model_working(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    compiled, plain = make_module(compile=True), make_module()
    for module in (compiled, plain):
        make_trainer(tmp_path, 2).fit(module, datamodule=MadeUpData(byte_tokenizer))
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], tensor, rtol=1e-3, atol=1e-4)
    heard: list[torch.Size] = []
    handle = compiled.model.model.layers[1].fc1.register_forward_hook(lambda *a: heard.append(a[2].shape))
    try:
        compiled.model(input_ids=torch.full((1, 5), 9))
    finally:
        handle.remove()
    assert heard == [torch.Size([1, 5, 32])]


def test_gradient_checkpointing_changes_no_gradient() -> None:
    batch = torch.arange(4, 28).view(2, 12)
    gradients = []
    for option in (False, True):
        module = make_module(gradient_checkpointing=option).train()
        module.model(input_ids=batch, labels=batch).loss.backward()
        gradients.append({name: p.grad for name, p in module.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_initial_weights_are_taken_and_other_sizes_refused(tmp_path: Path) -> None:
    source = make_module()
    source.model.save_pretrained(tmp_path / "start")
    torch.manual_seed(99)
    taken = LanguageModelingModule(**SIZES, max_position_embeddings=32, initial_weights=str(tmp_path / "start"))
    for name, tensor in weights(source).items():
        assert torch.equal(weights(taken)[name], tensor)
    with pytest.raises(ValueError, match="has ffn_dim 32 but the run has 64"):
        make_module(ffn_dim=64, initial_weights=str(tmp_path / "start"))
    with pytest.raises(FileNotFoundError, match=r"nowhere has no config.json"):
        make_module(initial_weights="nowhere")


@pytest.mark.slow
def test_the_real_model_takes_a_step(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """257,115,136 parameters, one optimizer step in bf16 on the CPU: about 6 GB."""
    options = yaml.safe_load((ROOT / "configs" / "train" / "xglm_257m.yaml").read_text(encoding="utf-8"))["model"]
    options["optimizer"]["warmup_steps"] = 1
    optimizer = OptimizerOptions(**options.pop("optimizer"))
    module = LanguageModelingModule(**options | {"optimizer": optimizer, "compile": False})
    assert sum(parameter.numel() for parameter in module.parameters()) == 257_115_136
    data, record = MadeUpData(byte_tokenizer, batch_size=2), Record()
    data.vocab_size = 256_008
    before = module.model.model.layers[12].fc1.weight.detach().clone()
    make_trainer(tmp_path, 2, [record], precision="bf16-mixed", gradient_clip_val=1.0, limit_val_batches=0).fit(
        module, datamodule=data
    )
    assert record.rows[0][1]["train/loss"] == pytest.approx(math.log(256_008), abs=1.0)
    assert not torch.equal(module.model.model.layers[12].fc1.weight, before)


def wrong_data(tokenizer: Any) -> Iterator[tuple[MadeUpData, str]]:
    data = MadeUpData(tokenizer)
    data.vocab_size = 512
    yield data, r"the tokenizer has 512 tokens but model.vocab_size is 384"
    data = MadeUpData(tokenizer)
    data.block_size = 64
    yield data, r"data.block_size is 64 but model.max_position_embeddings is 32"


def test_data_that_does_not_fit_the_model_is_refused(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    for data, message in wrong_data(byte_tokenizer):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, 1).fit(make_module(), datamodule=data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip_algorithm": "value", "gradient_clip_val": 1.0}, "only norm is supported"),
        ({"steps": -1}, "max_steps is not set"),
    ],
)
def test_trainer_options_that_do_not_fit_are_refused(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, options: dict[str, Any], message: str
) -> None:
    steps = options.pop("steps", 1)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, steps, **options).fit(make_module(), datamodule=MadeUpData(byte_tokenizer))
