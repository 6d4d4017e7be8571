"""One stream under every measure: pooled responses of all texts, one site at a time, in bounded memory.

The response of a unit to a text is its activation pooled over the text's own tokens (Suau et al., ICML 2022). Only the
body runs, never the vocabulary head; pooling happens inside the hook; sites go in packs that fit `max_bytes`, and the
forward pass is repeated per pack and stops at the pack's last site.

Shapes:  N texts   B texts of a batch   T tokens   U units of one site
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from analysis.extraction.encoding import Batch
from analysis.extraction.options import DEFAULTS, Extraction
from analysis.extraction.passes import Part, Place, all_finite, collect, make_packs
from analysis.extraction.pooling import make_pooling
from analysis.extraction.sites import Site
from analysis.snapshots import Snapshot

_REORDERED = 2**21
"""Values copied at once when texts are put into their order: 8 MiB of float32."""


@dataclass(frozen=True)
class Responses:
    """Responses of the units of one site to all texts."""

    site: Site
    values: Tensor
    """(U, N) float32, texts in the order in which they were given, on the device where the site lives."""
    first_unit: int = 0
    """Index of the first unit in `values`: 0 unless the site was too large for `max_bytes` and comes in parts."""


def iter_responses(
    snapshot: Snapshot, texts: Sequence[str], sites: Sequence[Site], extraction: Extraction = DEFAULTS
) -> Iterator[Responses]:
    """Yield the responses of `sites` to `texts`, in the order of `sites`.

    A site that alone exceeds `max_bytes` comes in several parts.

    Raises:
        ValueError: unknown pooling; no texts or one without content; no sites; a unit alone exceeds `max_bytes`; a
            response that is not finite or overflows float16 (naming site and text); a model in training mode.
    """
    batches = extraction.read(snapshot, texts)
    # Moved once, not for every site: the host waits for each copy onto a GPU.
    columns = cache(torch.cat([batch.indices for batch in batches]).argsort().to)
    for pack in make_packs(sites, len(texts) * extraction.dtype.itemsize, extraction.max_bytes, split=True):
        shapes = {part.site: (part.count, len(texts)) for part in pack}
        held = collect(snapshot.models, batches, shapes, partial(_take, pack, extraction))
        for part in pack:
            values = held.pop(part.site)
            _to_given_order(values, columns(values.device))
            _refuse_not_finite(part, values, texts)
            yield Responses(part.site, values.float(), part.first)


def _take(pack: Sequence[Part], extraction: Extraction, batch: Batch) -> tuple[Place, Callable[[Site, Tensor], Tensor]]:
    pooling = make_pooling(extraction.pool, batch.content)
    parts = {part.site: part for part in pack}

    def read(site: Site, activations: Tensor) -> Tensor:
        first, count = parts[site].first, parts[site].count
        if count < site.num_units:
            activations = activations[..., first : first + count]
        return pooling(activations).to(extraction.dtype).T

    # Texts side by side as they are read: scattered over (U, N) to where they belong, nearly every value would miss the
    # cache, an eighth of the whole pass at width 128.
    return (slice(None), slice(batch.start, batch.start + len(batch.indices))), read


def _to_given_order(values: Tensor, columns: Tensor) -> None:
    """Texts from the order of reading to their own, in place, some MiB at once; `columns` says where each was read."""
    for rows in values.split(max(1, _REORDERED // len(columns))):
        rows.copy_(rows.index_select(1, columns))


def _refuse_not_finite(part: Part, values: Tensor, texts: Sequence[str]) -> None:
    if all_finite(values):
        return
    unit, text = (int(index) for index in (~torch.isfinite(values)).nonzero()[0])
    what = "NaN" if bool(torch.isnan(values[unit, text])) else "infinite"
    hint = " (float16 storage overflows above 65504: use float32)" if values.dtype == torch.float16 else ""
    raise ValueError(
        f"response of unit {part.first + unit} of {part.site.module} to text {text} ({texts[text][:60]!r}) is "
        f"{what}{hint}"
    )
