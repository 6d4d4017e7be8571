"""One stream under every measure: pooled responses of all texts, one site at a time, in bounded memory.

The response of a unit to a text is its activation pooled over the text's own tokens (Suau et al., ICML 2022). Only the
body runs, never the vocabulary head; pooling happens inside the hook; sites go in packs that fit `max_bytes`, and the
forward pass is repeated per pack and stops at the pack's last site.

Shapes:  N texts   B texts of a batch   T tokens   U units of one site
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.extraction.encoding import Batch, Encoded, encode_texts, iter_batches, padding_id
from analysis.extraction.passes import Place, collect, input_device
from analysis.extraction.pooling import POOLINGS, make_pooling
from analysis.extraction.sites import Site
from analysis.snapshots import Snapshot

STORAGE = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Responses:
    """Responses of the units of one site to all texts."""

    site: Site
    values: Tensor
    """(U, N) float32, texts in the order in which they were given, on the device where the site lives."""
    first_unit: int = 0
    """Index of the first unit in `values`: 0 unless the site was split (`split_sites`)."""


@dataclass(frozen=True, slots=True)
class _Slice:
    """Units of one site that are held together."""

    site: Site
    first: int
    count: int


def iter_responses(
    snapshot: Snapshot,
    texts: Sequence[str],
    sites: Sequence[Site],
    *,
    pool: str = "max",
    batch_tokens: int | None = None,
    max_bytes: int = 2**30,
    max_length: int = 512,
    storage: str = "float32",
    split_sites: bool = False,
) -> Iterator[Responses]:
    """Yield the responses of `sites` to `texts`, in the order of `sites`.

    Args:
        pool: `max`, `mean` or `last`, over tokens that are neither padding nor special.
        batch_tokens: tokens per forward pass, padding included; changes results only by float rounding. None chooses by
            device and width, see `choose_batch_tokens`.
        max_bytes: bound on the responses held at once; fewer bytes mean more forward passes.
        max_length: tokens after which a text is cut.
        storage: `float32`, or `float16` for half the memory (AP differs by 1e-4 in the mean).
        split_sites: a site that alone exceeds `max_bytes` comes in several parts (`Responses.first_unit`).

    Raises:
        ValueError: unknown option; no texts or one without content; a site (if split, a unit) alone exceeds
            `max_bytes`; a response that is not finite or overflows float16 (naming site and text); a model in training
            mode.
    """
    if pool not in POOLINGS:
        raise ValueError(f"pool={pool!r}: choose one of {', '.join(POOLINGS)}")
    if storage not in STORAGE:
        raise ValueError(f"storage={storage!r}: choose one of {', '.join(STORAGE)}")
    if snapshot.model.training:
        raise ValueError("the model is in training mode, its dropout would enter the responses: call model.eval()")
    limit = getattr(snapshot.model.config.get_text_config(), "max_position_embeddings", None) or max_length
    encoded = encode_texts(snapshot.tokenizer, texts, min(max_length, limit))
    pad_id = padding_id(snapshot.tokenizer)
    if batch_tokens is None:
        batch_tokens = choose_batch_tokens(snapshot.model)
    for pack in _make_packs(sites, len(texts) * STORAGE[storage].itemsize, max_bytes, split_sites):
        held = _run_pack(snapshot.models, encoded, pack, pool, batch_tokens, pad_id, STORAGE[storage])
        for part in pack:
            values = held.pop(part.site)
            _refuse_not_finite(part, values, texts)
            yield Responses(part.site, values.float(), part.first)


def _make_packs(sites: Sequence[Site], unit_bytes: int, max_bytes: int, split_sites: bool) -> list[list[_Slice]]:
    """Consecutive sites whose responses fit `max_bytes` together; `unit_bytes` is what one unit takes.

    Raises:
        ValueError: no sites, or one (with `split_sites` a unit) that does not fit alone.
    """
    if not sites:
        raise ValueError("no sites to read: choose a site set, see analysis.extraction.sites.SITE_SETS")
    room = max_bytes // unit_bytes
    packs: list[list[_Slice]] = []
    used = 0
    for site in sites:
        if site.num_units > room and (room < 1 or not split_sites):
            raise ValueError(
                f"max_bytes={max_bytes}: the responses of {site.module} take {site.num_units * unit_bytes} bytes; "
                "raise max_bytes or use fewer texts"
            )
        for first in range(0, site.num_units, room):
            part = _Slice(site, first, min(room, site.num_units - first))
            if not packs or used + part.count > room:
                packs.append([])
                used = 0
            packs[-1].append(part)
            used += part.count
    return packs


def choose_batch_tokens(model: PreTrainedModel) -> int:
    """Tokens per forward pass: on a CPU as many as keep one activation of the residual stream within 2 MiB of cache
    (256 to 4,096), elsewhere 16,384. At width 1,024 a pass of 512 tokens is 1.4 times as fast as one of 2,048."""
    if input_device(model).type != "cpu":
        return 16_384
    return min(4096, max(256, 2**19 // model.config.get_text_config().hidden_size))


def _run_pack(
    models: Sequence[PreTrainedModel],
    encoded: Encoded,
    pack: Sequence[_Slice],
    pool: str,
    batch_tokens: int,
    pad_id: int,
    dtype: torch.dtype,
) -> dict[Site, Tensor]:
    """Responses (U, N) of every part of a pack: one pass over all texts."""
    parts = {part.site: part for part in pack}

    def take(batch: Batch) -> tuple[Place, Callable[[Site, Tensor], Tensor]]:
        pooling = make_pooling(pool, batch.content)

        def read(site: Site, activations: Tensor) -> Tensor:
            part = parts[site]
            if part.count < site.num_units:
                activations = activations[..., part.first : part.first + part.count]
            return pooling(activations).to(dtype).T

        return (slice(None), batch.indices), read

    shapes = {part.site: (part.count, len(encoded)) for part in pack}
    return collect(models, iter_batches(encoded, batch_tokens, pad_id), shapes, take)


def _refuse_not_finite(part: _Slice, values: Tensor, texts: Sequence[str]) -> None:
    if bool(torch.isfinite(values).all()):
        return
    unit, text = (int(index) for index in (~torch.isfinite(values)).nonzero()[0])
    what = "NaN" if bool(torch.isnan(values[unit, text])) else "infinite"
    hint = " (float16 storage overflows above 65504: use float32)" if values.dtype == torch.float16 else ""
    raise ValueError(
        f"response of unit {part.first + unit} of {part.site.module} to text {text} ({texts[text][:60]!r}) is "
        f"{what}{hint}"
    )
