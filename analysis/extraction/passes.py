"""One pass of a model's body over batches of texts, keeping what is read at its sites.

The vocabulary head never runs, and a pass stops at the last site that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from threading import Lock

import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.extraction.encoding import Batch
from analysis.extraction.hooks import read_sites
from analysis.extraction.replicas import deal_batches
from analysis.extraction.sites import Site, body

Place = tuple[slice | Tensor, ...]
"""Where in a site's result the values of one batch go: an index of its dimensions."""


class _AllHeardError(Exception):
    """Ends a forward pass whose remaining modules nobody listens to."""


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids have to be: the first parameter that is not offloaded."""
    devices = (parameter.device for parameter in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def collect(
    models: Sequence[PreTrainedModel],
    batches: Iterable[Batch],
    shapes: Mapping[Site, tuple[int, ...]],
    take: Callable[[Batch], tuple[Place, Callable[[Site, Tensor], Tensor]]],
) -> dict[Site, Tensor]:
    """Results of every site, of the given shapes, from one pass over all batches.

    Args:
        models: one, or copies of it that share the batches; results lie where the first one's sites live.
        take: for a batch the place of its values, and what makes them of a site's activations (B, T, U).
    """
    held: dict[Site, Tensor] = {}
    lock = Lock()

    def run(model: PreTrainedModel, batch: Batch) -> None:
        place, read = take(batch)
        waiting = set(shapes)

        def on_output(site: Site, activations: Tensor) -> None:
            values = read(site, activations)
            with lock:
                if site not in held:
                    home = values.device if model is models[0] else input_device(models[0])
                    held[site] = torch.empty(shapes[site], dtype=values.dtype, device=home)
            held[site][place] = values.to(held[site].device)
            waiting.discard(site)
            if not waiting:
                raise _AllHeardError

        device = input_device(model)
        # Not inference mode: buffers that a model makes on the way (rotary tables) must stay usable for training.
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            read_sites(model, list(shapes), on_output),
            suppress(_AllHeardError),
        ):
            body(model)(
                input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
            )

    deal_batches(models, batches, run)
    return held
