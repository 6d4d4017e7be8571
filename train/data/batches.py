"""Batches for training and validation, cut from prepared streams of tokens.

Both are iterable datasets that yield whole batches, so Lightning adds no sampler of its own, and a worker process
yields every `num_workers`-th batch, which the loader puts back in order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from train.data.mixing import SampleOrder
from train.data.streams import PreparedText, TokenStream
from train.model.loss_tokens import IGNORE_INDEX

# Shapes: B sequences   T tokens of a sequence (block size)   S tokens of a stream

Batch = dict[str, torch.Tensor]


def micro_batch_size(batch_size: int, devices: int, accumulate: int) -> int:
    """Sequences of one forward pass on one device.

    Raises:
        ValueError: `batch_size` cannot be divided evenly.
    """
    if batch_size % (devices * accumulate):
        raise ValueError(
            f"data.batch_size {batch_size} is not divisible by {devices} devices x {accumulate} accumulated "
            "micro-batches; change it or trainer.accumulate_grad_batches"
        )
    return batch_size // (devices * accumulate)


class Batches(IterableDataset):
    """Whole batches by number, which worker processes take in turns."""

    first = 0
    """Number of the batch at which iteration begins."""

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        mine, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(self.first + mine, len(self), stride):
            yield self.batch(number)

    @abstractmethod
    def __len__(self) -> int:
        """Batches of this rank."""

    @abstractmethod
    def batch(self, number: int) -> Batch:
        """Tensors by name."""


class TrainBatches(Batches):
    """Micro-batches of one rank, numbered from 0 over the whole run: number = step * accumulate + micro-batch.

    Sample i of the run is row i % G of the global batch of step i // G (G = batch_size). Its rows are dealt to
    micro-batches and ranks in order, (micro-batch, rank, row), so the global batch is the same set of sequences
    however it is divided.

    Args:
        streams: training tokens of each language.
        order: of the samples of the whole run.
        batch_size: sequences per optimizer step over all ranks and micro-batches (G).
        world_size: ranks that share a micro-batch.
        accumulate: micro-batches per step.
        num_steps: steps of the whole run; the length is that of the whole run too, because Lightning adds the
            batches before a resumed one to those it fetches.
        document_masks: add `segment_ids`, from which the model takes masks and positions.

    Raises:
        ValueError: see `micro_batch_size`.
    """

    def __init__(
        self,
        streams: Mapping[str, TokenStream],
        order: SampleOrder,
        *,
        block_size: int,
        batch_size: int,
        separator_id: int,
        num_steps: int,
        world_size: int = 1,
        rank: int = 0,
        accumulate: int = 1,
        document_masks: bool = False,
    ) -> None:
        self.streams = dict(streams)
        self.order = order
        self.block_size = block_size
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size(batch_size, world_size, accumulate)
        self.separator_id = separator_id
        self.num_steps = num_steps
        self.world_size = world_size
        self.rank = rank
        self.accumulate = accumulate
        self.document_masks = document_masks

    def __len__(self) -> int:
        return self.num_steps * self.accumulate

    def batch(self, number: int) -> Batch:
        """Micro-batch `number` of this rank: `input_ids` and `labels` (B, T); the model shifts the labels itself."""
        step, micro_batch = divmod(number, self.accumulate)
        position = (micro_batch * self.world_size + self.rank) * self.micro_batch_size
        languages, blocks = self.order.samples(step * self.batch_size + position, self.micro_batch_size)
        rows = [
            self.streams[self.order.languages[language]].read(int(block) * self.block_size, self.block_size)
            for language, block in zip(languages, blocks, strict=True)
        ]
        input_ids = torch.from_numpy(np.stack(rows))
        batch = {"input_ids": input_ids, "labels": input_ids.clone()}
        if self.document_masks:
            batch["segment_ids"] = segment_ids(input_ids, self.separator_id)
        return batch


class ValidationBatches(Batches):
    """Held-out text of one language in batches that say how many bytes of raw text their predictions cover.

    Blocks overlap by one token: the last token of a block is the first, unpredicted one of the next, so each token of
    the stream is predicted exactly once. Separators are context, never predicted (label -100): they stand for no
    text. Hence, over all blocks, the predicted tokens cover every byte of the raw text once, and

        bits per byte = sum of the tokens' nats / ln 2 / sum of `num_bytes`.

    With `max_blocks` the blocks are taken at even distances, and the bytes are those of the tokens predicted.
    Ranks take batches in turn and all have equally many; one that has run out gets a batch of nothing but ignored
    labels and 0 bytes, which a sum leaves as it is.
    """

    def __init__(
        self,
        prepared: PreparedText,
        language: str,
        split: str,
        *,
        block_size: int,
        batch_size: int,
        max_blocks: int | None,
        pad_id: int,
        world_size: int = 1,
        rank: int = 0,
        document_masks: bool = False,
    ) -> None:
        assert block_size >= 2
        self.language = language
        self.tokens = prepared.tokens(language, split)
        self.bytes = prepared.token_bytes(language, split)
        self.separator_id = prepared.separator_id
        self.block_size = block_size
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.world_size = world_size
        self.rank = rank
        self.document_masks = document_masks
        total = -(-(len(self.tokens) - 1) // (block_size - 1))
        count = total if max_blocks is None else min(total, max_blocks)
        self.blocks = (np.arange(count) * total) // max(count, 1)

    def __len__(self) -> int:
        return -(-len(self.blocks) // (self.batch_size * self.world_size))

    def batch(self, number: int) -> Batch:
        """`input_ids`, `labels` (B, T), `num_bytes` (B,): bytes of raw text under the predicted tokens of each row."""
        start = (number * self.world_size + self.rank) * self.batch_size
        blocks = self.blocks[start : start + self.batch_size]
        size = max(1, len(blocks))
        ids = np.full((size, self.block_size), self.pad_id, dtype=np.int64)
        labels = np.full_like(ids, IGNORE_INDEX)
        num_bytes = np.zeros(size, dtype=np.int64)
        for row, block in enumerate(blocks):
            start = int(block) * (self.block_size - 1)
            tokens = self.tokens.read(start, self.block_size)
            ids[row, : len(tokens)] = tokens
            predicted = tokens != self.separator_id
            predicted[0] = False
            labels[row, : len(tokens)] = np.where(predicted, tokens, IGNORE_INDEX)
            num_bytes[row] = self.bytes.read(start, self.block_size)[1:].sum()
        input_ids = torch.from_numpy(ids)
        batch = {"input_ids": input_ids, "labels": torch.from_numpy(labels), "num_bytes": torch.from_numpy(num_bytes)}
        if self.document_masks:
            batch["segment_ids"] = segment_ids(input_ids, self.separator_id)
        return batch


class StepLoader(DataLoader):
    """Starts every iteration at the step where training stands.

    It has the methods of a stateful loader, with nothing in the state: Lightning then knows that resuming in the middle
    of an epoch is exact.
    """

    def __init__(self, batches: TrainBatches, current_step: Callable[[], int], *, num_workers: int) -> None:
        super().__init__(batches, batch_size=None, num_workers=num_workers)
        self._batches = batches
        self._current_step = current_step

    def __iter__(self) -> Any:
        self._batches.first = self._current_step() * self._batches.accumulate
        return super().__iter__()

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to restore: the position is the trainer's step."""


def segment_ids(input_ids: torch.Tensor, separator_id: int) -> torch.Tensor:
    """Number of the document within its sequence, (B, T), from 0: a separator opens the next one."""
    ids = (input_ids == separator_id).cumsum(-1)
    return ids - ids[:, :1]
