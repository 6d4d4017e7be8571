"""Copies of one checkpoint on further devices: the texts of a measure are dealt to whichever copy is free.

Every extraction runs its batches through `deal_batches`, so that several devices work on one checkpoint without any
measure knowing of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from threading import Lock

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from analysis.extraction.encoding import Batch


def replicate(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """A copy with its own hooks whose weights are on `device`; on the model's own device they are the same memory."""

    def moved(tensor: Tensor) -> Tensor:
        there = tensor.detach().to(device)
        return nn.Parameter(there, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there

    # deepcopy takes from its memo what is copied already: so the first device never holds the weights twice, and tied
    # weights stay tied.
    return copy.deepcopy(model, {id(tensor): moved(tensor) for tensor in chain(model.parameters(), model.buffers())})


def deal_batches(
    models: Sequence[PreTrainedModel], batches: Iterable[Batch], run: Callable[[PreTrainedModel, Batch], None]
) -> None:
    """Call `run` once for every batch; with several models a thread of each takes the next batch when it is free.

    `run` is then called from several threads at once, with different batches. Its first error ends all and is raised.
    """
    if len(models) == 1:
        for batch in batches:
            run(models[0], batch)
        return
    stream, lock = iter(batches), Lock()
    failed: list[BaseException] = []

    def drain(model: PreTrainedModel) -> None:
        while not failed:
            with lock:
                batch = next(stream, None)
            if batch is None:
                return
            try:
                run(model, batch)
            except BaseException as error:
                failed.append(error)

    with ThreadPoolExecutor(len(models)) as threads:
        list(threads.map(drain, models))
    if failed:
        raise failed[0]
