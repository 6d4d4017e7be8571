"""The Lightning side of pretraining: one training step, validation in bits per byte, and steps that must not count.

Three things here differ from the usual module, each for a reason:

- The loss is normalised by the number of label tokens of the *whole* optimizer step, over micro-batches and ranks, not
  by the mean of micro-batch means: with masked labels those differ. Micro-batches use a nominal count and the gradients
  are corrected once, just before they are clipped.
- A step whose loss or gradient norm is not finite is skipped: all gradients are dropped, so AdamW touches neither
  weights nor moments. The decision is taken on reduced values and is therefore the same on every rank.
- `model` is the plain module. `torch.compile` makes a separate callable over the same parameters, because hooks that
  analyses register after the first compiled call would never fire (pytorch issue 117758).

Shapes:  B micro-batch   T tokens of a block
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from train.config.compatibility import check_data, check_trainer, read_initial_weights
from train.flops import flops_per_token, peak_flops
from train.metrics import LanguageLoss
from train.model.loss import Backend
from train.model.loss_tokens import IGNORE_INDEX
from train.model.xglm import XGLMForCausalLM, build_config
from train.optim import OptimizerOptions, build_optimizer, build_scheduler
from train.resuming import follow_accumulation, follow_options
from train.throughput import ThroughputMeter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

MODEL_INPUTS = ("input_ids", "labels", "segment_ids")
"""Keys of a batch that are arguments of the model; other keys describe the batch."""


class TrainingDivergedError(RuntimeError):
    """More steps had a loss or gradient that was not finite than the run allows."""


class LanguageModelingModule(pl.LightningModule):
    """An XGLM trained from scratch (or from given weights) to predict the next token.

    Metrics logged: every optimizer step `train/loss` (nats per token of the whole step, over ranks and micro-batches),
    `train/gradient_norm` (before clipping), `train/skipped_steps`, `perf/tokens_per_second`, `perf/mfu` (left out if
    the device's peak is unknown); after validation `val/bits_per_byte/<language>`, their mean
    `val/bits_per_byte/mean` and `val/perplexity/<language>` (of a token).

    Args:
        vocab_size: tokens of the vocabulary; must be the tokenizer's size. `python -m train` takes that of the data
            where it is 0.
        d_model: width of the residual stream.
        num_layers: decoder blocks.
        attention_heads: attention heads of a block; must divide `d_model`.
        ffn_dim: width of the feed-forward layer.
        max_position_embeddings: longest context in tokens (sinusoidal positions, no parameters).
        dropout: dropout of embeddings and block outputs. Attention dropout is always 0: it would leave the fast kernel.
        initial_weights: Hugging Face folder whose weights training starts from; empty for a random start.
        optimizer: how the weights are updated.
        compile: run training steps through `torch.compile` (worth it on a GPU); analyses use the plain module.
        gradient_checkpointing: recompute block activations in the backward pass: less memory, about a third more time.
        loss_backend: implementation of the linear cross-entropy, see `train.model.loss`.
        max_skipped_steps: training ends with an error when more steps than this were skipped for a loss or gradient
            that was not finite.
        throughput_window: optimizer steps over which `perf/tokens_per_second` is averaged.
    """

    tokenizer: PreTrainedTokenizerBase | None

    def __init__(
        self,
        d_model: int,
        num_layers: int,
        attention_heads: int,
        ffn_dim: int,
        vocab_size: int = 0,
        max_position_embeddings: int = 2048,
        dropout: float = 0.0,
        initial_weights: str = "",
        optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008 (frozen)
        compile: bool = False,
        gradient_checkpointing: bool = False,
        loss_backend: Backend = "auto",
        max_skipped_steps: int = 50,
        throughput_window: int = 50,
    ) -> None:
        super().__init__()
        if max_skipped_steps < 0:
            raise ValueError(f"model.max_skipped_steps is {max_skipped_steps}; it must be 0 or more")
        config = build_config(
            vocab_size=vocab_size,
            d_model=d_model,
            num_layers=num_layers,
            attention_heads=attention_heads,
            ffn_dim=ffn_dim,
            max_position_embeddings=max_position_embeddings,
            dropout=dropout,
        )
        self.model = XGLMForCausalLM(config, loss_backend=loss_backend)
        if initial_weights:
            self.model.load_state_dict(read_initial_weights(initial_weights, config))
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        # A function, not a module: a compiled module would enter state_dict a second time under another name.
        self._compiled: Callable[..., Any] | None = torch.compile(self.model.forward) if compile else None
        self.optimizer_options = optimizer
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        """Optimizer steps skipped so far because loss or gradient was not finite; part of the checkpoint."""
        self.tokenizer = None
        self.throughput = ThroughputMeter(throughput_window)
        self._tokens_per_step = 0
        self._flops_per_token = 0.0
        self._peak_flops: float | None = None
        self._nats: Tensor | None = None
        self._items: Tensor | None = None
        self._nominal_items = 0
        self._languages: tuple[str, ...] = ()
        self.validation_loss = LanguageLoss(0)

    @property
    def tokens_seen(self) -> int:
        """Tokens that training has consumed: optimizer steps x tokens per step over all ranks."""
        return self.global_step * self._tokens_per_step

    # set-up -----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        check_trainer(self.trainer)
        # What is logged here has been summed over ranks already.
        warnings.filterwarnings("ignore", message=".*sync_dist=True.*when logging on epoch level.*")
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            raise ValueError("no data module given; pass one as `datamodule`")
        check_data(data, self.model.config)
        self._nats = self._items = None  # a fit that broke off within a step has left some
        self.tokenizer = data.tokenizer
        self._languages = tuple(data.validation_languages)
        self.validation_loss = LanguageLoss(len(self._languages), _wide(self.trainer.strategy.root_device))
        self._tokens_per_step = data.tokens_per_step
        self._flops_per_token = flops_per_token(self.model.config, data.block_size)
        products = torch.bfloat16 if "bf16" in self.trainer.precision else torch.float32
        peak = peak_flops(self.trainer.strategy.root_device, products)
        self._peak_flops = None if peak is None else peak * self.trainer.world_size

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self._fresh_optimizer()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _fresh_optimizer(self) -> tuple[Optimizer, LambdaLR]:
        max_steps = self.trainer.max_steps
        if max_steps < 1:
            raise ValueError("trainer.max_steps is not set; the learning rate decays until that step")
        optimizer = build_optimizer(self.model, self.optimizer_options)
        return optimizer, build_scheduler(optimizer, self.optimizer_options, max_steps)

    def log(self, name: str, value: Any, **options: Any) -> None:  # type: ignore[override]
        """As Lightning's; in a training it is `callbacks.tracking` that hands the values on to loggers.

        Lightning would write them under a step that is one behind `global_step`, off the axis of the analyses.
        """
        if self.trainer.state.fn == "fit":
            options["logger"] = False
        super().log(name, value, **options)

    # training ---------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.throughput.resume()

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        labels = batch["labels"]
        # Label tokens of a block without masks; the same for every micro-batch and rank, corrected in one place below.
        self._nominal_items = labels.shape[0] * (labels.shape[1] - 1)
        forward = self._compiled or self.model
        loss: Tensor = forward(**_model_inputs(batch), num_items=self._nominal_items).loss
        with torch.no_grad():
            nats = loss.detach().to(_wide(loss.device)) * self._nominal_items
            items = (labels[:, 1:] != IGNORE_INDEX).sum()
            self._nats = nats if self._nats is None else self._nats + nats
            self._items = items if self._items is None else self._items + items
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Normalise by the step's label tokens, clip to the norm, or drop the gradients of a step that is not finite.

        Lightning divides each micro-batch by the number of micro-batches and DDP averages over ranks, so gradients
        arrive as sum(nats) / (nominal x micro-batches x ranks); they leave as sum(nats) / sum(label tokens).
        """
        assert self._nats is not None
        assert self._items is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        totals = torch.stack([self._nats, self._items.to(self._nats.dtype)])
        self._nats = self._items = None
        totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        norm = torch.nn.utils.get_total_norm(gradients)
        nats, items, norm_value = torch.stack([totals[0], totals[1], norm.to(totals.dtype)]).tolist()
        items = max(items, 1.0)
        divided_by = self._nominal_items * self.trainer.accumulate_grad_batches * self.trainer.world_size
        factor = divided_by / items
        norm_value *= factor
        loss = nats / items
        if math.isfinite(loss) and math.isfinite(norm_value):
            if gradient_clip_val:
                factor *= min(1.0, gradient_clip_val / (norm_value + 1e-6))
            if factor != 1.0:
                torch._foreach_mul_(gradients, factor)
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/gradient_norm", norm_value)
        else:
            for parameter in parameters:
                parameter.grad = None
            self._count_skipped_step(loss, norm_value)
        self.log("train/skipped_steps", float(self.skipped_steps))
        speed = self.throughput.tokens_per_second
        if speed is not None:
            self.log("perf/tokens_per_second", speed, prog_bar=True)
            if self._peak_flops is not None:  # unknown: no MFU is made up
                self.log("perf/mfu", speed * self._flops_per_token / self._peak_flops)

    def _count_skipped_step(self, loss: float, norm: float) -> None:
        self.skipped_steps += 1
        step = self.global_step
        log.warning("step %d skipped (%d so far): loss %s, gradient norm %s", step + 1, self.skipped_steps, loss, norm)
        if self.skipped_steps > self.max_skipped_steps:
            raise TrainingDivergedError(
                f"step {step + 1}: {self.skipped_steps} steps had a loss or gradient that was not finite, more than "
                f"model.max_skipped_steps={self.max_skipped_steps}; lower model.optimizer.lr or look at the data there"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Callbacks (snapshots, analyses) come next, on their own time; the module's `on_train_batch_end` is after them.
        self.throughput.step_done(self._tokens_per_step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.throughput.resume()

    # validation -------------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        self.throughput.pause()

    def on_validation_epoch_start(self) -> None:
        self.validation_loss.reset()

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        nats = self.model(**_model_inputs(batch), num_items=1).loss
        num_bytes = torch.as_tensor(batch["num_bytes"], device=self.device).sum()
        num_tokens = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
        self.validation_loss.update(dataloader_idx, nats, num_bytes, num_tokens)

    def on_validation_epoch_end(self) -> None:
        scores = []
        for language, score in zip(self._languages, self.validation_loss.compute(), strict=True):
            if score is None:  # `limit_val_batches` may leave a language out
                continue
            scores.append(score[0])
            self.log(f"val/bits_per_byte/{language}", score[0])
            self.log(f"val/perplexity/{language}", score[1])
        if scores:
            self.log("val/bits_per_byte/mean", sum(scores) / len(scores), prog_bar=True)

    # checkpointed state -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.throughput.pause()  # until the batch begins before which the resume checkpoint is written
        checkpoint["babelscope"] = {"skipped_steps": self.skipped_steps}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_steps = int(checkpoint.get("babelscope", {}).get("skipped_steps", 0))
        if self.trainer.state.fn == "fit":
            follow_options(checkpoint, *self._fresh_optimizer())
            follow_accumulation(checkpoint, self.trainer.accumulate_grad_batches)


def _model_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: batch[key] for key in MODEL_INPUTS if key in batch}


def _wide(device: torch.device) -> torch.dtype:
    """The widest float of the device, for exact sums over many batches (Apple's GPUs have no float64)."""
    return torch.float32 if device.type == "mps" else torch.float64
