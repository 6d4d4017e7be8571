"""The one forward pass: a model's body over batches of texts, listening at sites.

The vocabulary head never runs, a pass stops at the last site that is asked for, and what does not fit into memory at
once is read in several passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.extraction.encoding import Batch
from analysis.extraction.hooks import read_sites
from analysis.extraction.options import input_device
from analysis.extraction.replicas import deal_batches
from analysis.extraction.sites import Site, body

Place = tuple[slice | Tensor, ...]
"""Where in a site's result the values of one batch go: an index of its dimensions."""


class _AllHeardError(Exception):
    """Ends a forward pass whose remaining modules nobody listens to."""


def run_body(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Last hidden states (B, T, D) of a batch, after the final norm, in the precision of the weights.

    Raises:
        ValueError: a model in training mode.
    """
    if model.training:
        raise ValueError("the model is in training mode, its dropout would enter the results: call model.eval()")
    device = input_device(model)
    # Not inference mode: buffers that a model makes on the way (rotary tables) must stay usable for training.
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        hidden: Tensor = body(model)(
            input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
        )[0]
    return hidden


def listen(
    models: Sequence[PreTrainedModel],
    batches: Iterable[Batch],
    sites: Sequence[Site],
    reader: Callable[[PreTrainedModel, Batch], Callable[[Site, Tensor], None]],
) -> None:
    """One pass over all batches; `reader` makes for each what is called with a site and its activations (B, T, U).

    Args:
        models: one, or copies of it that share the batches: `reader` is then called from several threads.
    """

    def run(model: PreTrainedModel, batch: Batch) -> None:
        read, waiting = reader(model, batch), set(sites)

        def on_output(site: Site, activations: Tensor) -> None:
            if activations.dim() != 3 or activations.shape[-1] != site.num_units:
                shape = tuple(activations.shape)
                raise ValueError(f"{site.module} gives {shape}, not texts x tokens x {site.num_units} units")
            read(site, activations)
            waiting.discard(site)
            if not waiting:
                raise _AllHeardError

        with read_sites(model, sites, on_output), suppress(_AllHeardError):
            run_body(model, batch)

    deal_batches(models, batches, run)


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

    def reader(model: PreTrainedModel, batch: Batch) -> Callable[[Site, Tensor], None]:
        place, read = take(batch)
        # Moved once a batch: indexing a tensor of a GPU by one of the CPU makes the host wait, here in every hook.
        places: dict[torch.device, Place] = {}

        def keep(site: Site, activations: Tensor) -> None:
            values = read(site, activations)
            with lock:
                if site not in held:
                    home = values.device if model is models[0] else input_device(models[0])
                    held[site] = torch.empty(shapes[site], dtype=values.dtype, device=home)
            device = held[site].device
            if device not in places:
                places[device] = tuple(part.to(device) if isinstance(part, Tensor) else part for part in place)
            held[site][places[device]] = values.to(device)

        return keep

    listen(models, batches, list(shapes), reader)
    return held


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite: a finite sum says so in one pass, else every value is asked."""
    return bool(torch.isfinite(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())


@dataclass(frozen=True, slots=True)
class Part:
    """Units of one site that are held together."""

    site: Site
    first: int
    count: int


def make_packs(sites: Sequence[Site], unit_bytes: int, max_bytes: int, *, split: bool) -> list[list[Part]]:
    """Consecutive sites whose results fit `max_bytes` together; `unit_bytes` is what one unit takes.

    Args:
        split: a site that alone exceeds `max_bytes` comes in several parts.

    Raises:
        ValueError: no sites, or a site (with `split` a unit) that does not fit alone.
    """
    if not sites:
        raise ValueError("no sites to read: choose a site set, see analysis.extraction.sites.SITE_SETS")
    room = max_bytes // unit_bytes
    packs: list[list[Part]] = []
    used = 0
    for site in sites:
        if room < (1 if split else site.num_units):
            raise ValueError(
                f"max_bytes={max_bytes}: the results of {site.module} take {site.num_units * unit_bytes} bytes; "
                "raise max_bytes or use fewer texts"
            )
        for first in range(0, site.num_units, room):
            part = Part(site, first, min(room, site.num_units - first))
            if not packs or used + part.count > room:
                packs.append([])
                used = 0
            packs[-1].append(part)
            used += part.count
    return packs
