"""AP and AUROC of all units with array operations alone: NumPy as the reference that is always there, torch on devices.

The texts of a pool are ranked once per unit; a concept then needs the ranks of its labelled texts, sorted. Called by
`analysis.experts.average_precision`, which says what is computed; the compiled version is `analysis.experts.kernels`.

Shapes:  U units   N texts   C concepts   P positives of a concept   M its labelled texts
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NUMPY_BLOCK = 256
"""Units per step of the NumPy path, so that its temporaries stay in cache."""
TORCH_BLOCK = 4096
"""Units per step of the torch path: about 40 bytes x texts x units of temporaries."""

Members = Sequence[tuple[np.ndarray, np.ndarray]]
"""Positives and negatives of each concept as int64 indices."""


def numpy_sums(
    values: np.ndarray, members: Members, others: bool, count_above: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Sums of precisions, and (positive, negative) pairs with the negative above if wanted, both (C, U) float64.

    `others` says that every text that is not a positive is a negative, which saves most of the work.
    """
    num_units, num_texts = values.shape
    ap = np.empty((len(members), num_units))
    above = np.empty((len(members), num_units)) if count_above else None
    is_positive = np.zeros((num_texts, len(members)))
    for concept, (yes, _) in enumerate(members):
        is_positive[yes, concept] = 1.0
    pairs = np.array([len(yes) * (len(yes) + 1) / 2 for yes, _ in members])
    for first in range(0, num_units, NUMPY_BLOCK):
        part = slice(first, first + NUMPY_BLOCK)
        ends, midranks = _rank_texts(values[part])
        if others and above is not None:
            above[:, part] = (midranks @ is_positive - pairs).T
        for concept, (yes, no) in enumerate(members):
            if others:
                ranks = np.sort(ends[:, yes], axis=1)
                ap[concept, part] = (_run_bounds(ranks)[1] / ranks.astype(np.float64)).sum(1)
            else:
                ap[concept, part], worse = _sums_among_members(ends, yes, no)
                if above is not None:
                    above[concept, part] = worse
    return ap, above


def _rank_texts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every unit and text the number of responses at least as large, (U, N) uint16/32, and the mid-rank from the
    top, (U, N) float64."""
    num_texts = values.shape[1]
    # Adding 0.0 makes -0.0 equal to 0.0; inverted bits of a float32 sort like the float, see expertise_kernels.
    bits = (values + np.float32(0.0)).view(np.uint32)
    keys = np.where(bits >> 31 == 0, ~(bits | np.uint32(0x80000000)), bits).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(num_texts, dtype=np.uint64)
    keys.sort(axis=1)
    texts = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    starts, ends = _run_bounds(keys >> np.uint64(32))
    ranks = np.empty(values.shape, dtype=np.uint16 if num_texts < 2**16 else np.uint32)
    np.put_along_axis(ranks, texts, ends.astype(ranks.dtype), axis=1)
    midranks = np.empty(values.shape)
    np.put_along_axis(midranks, texts, (starts + ends + 1) / 2, axis=1)
    return ranks, midranks


def _run_bounds(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every entry of sorted rows (U, M): how many are smaller, and how many are smaller or equal, int32."""
    places = np.arange(ordered.shape[1], dtype=np.int32)
    starts, ends = np.broadcast_to(places, ordered.shape), np.broadcast_to(places + 1, ordered.shape)
    tied = ordered[:, 1:] == ordered[:, :-1]
    rows = np.flatnonzero(tied.any(1))
    if rows.size == 0:
        return starts, ends
    edge = np.ones((rows.size, 1), dtype=bool)
    opens = np.where(np.hstack([edge, ~tied[rows]]), places, 0)
    closes = np.where(np.hstack([~tied[rows], edge]), places + 1, ordered.shape[1])
    starts, ends = starts.copy(), ends.copy()
    starts[rows] = np.maximum.accumulate(opens, axis=1)
    ends[rows] = np.minimum.accumulate(closes[:, ::-1], axis=1)[:, ::-1]
    return starts, ends


def _sums_among_members(ends: np.ndarray, yes: np.ndarray, no: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of precisions and of negatives above, (U,) each, ranking a concept's labelled texts among themselves."""
    labelled = np.concatenate([yes, no])
    is_negative = np.repeat(np.array([0, 1], dtype=np.uint32), [len(yes), len(no)])
    keys = np.sort((ends[:, labelled].astype(np.uint32) << np.uint32(1)) | is_negative, axis=1)
    positive = (keys & np.uint32(1)) == 0
    starts, places = _run_bounds(keys >> np.uint32(1))
    hits = np.take_along_axis(np.cumsum(positive, axis=1), places.astype(np.int64) - 1, axis=1)
    midranks = (starts + places + 1) / 2
    pairs = len(yes) * (len(yes) + 1) / 2
    return (hits / places * positive).sum(1), (midranks * positive).sum(1) - pairs


def torch_sums(values: Tensor, members: Members, others: bool) -> tuple[Tensor, Tensor]:
    """As `numpy_sums`, on the device of `values`, always with both results."""
    num_units, device = values.shape[0], values.device
    ap = torch.empty(len(members), num_units, dtype=torch.float64, device=device)
    above = torch.empty_like(ap)
    sides = [(torch.from_numpy(yes).to(device), torch.from_numpy(no).to(device)) for yes, no in members]
    for first in range(0, num_units, TORCH_BLOCK):
        part = slice(first, first + TORCH_BLOCK)
        ordered, texts = torch.sort(values[part].neg(), dim=1)
        starts = torch.searchsorted(ordered, ordered)
        ends = torch.searchsorted(ordered, ordered, right=True)
        ranks = torch.empty_like(texts, dtype=torch.int32).scatter_(1, texts, ends.int())
        midranks = torch.empty_like(texts, dtype=torch.float64).scatter_(1, texts, (starts + ends + 1).double() / 2)
        for concept, (yes, no) in enumerate(sides):
            pairs = len(yes) * (len(yes) + 1) / 2
            if others:
                among = ranks[:, yes].sort(1).values
                hits = torch.searchsorted(among, among, right=True)
                ap[concept, part] = (hits.double() / among).sum(1)
                above[concept, part] = midranks[:, yes].sum(1) - pairs
                continue
            among, places = ranks[:, torch.cat([yes, no])].sort(1)
            positive = places < len(yes)
            first_of_run = torch.searchsorted(among, among)
            last_of_run = torch.searchsorted(among, among, right=True)
            hits = positive.cumsum(1).gather(1, last_of_run - 1)
            ap[concept, part] = (hits.double() / last_of_run * positive).sum(1)
            middle = (first_of_run + last_of_run + 1).double() / 2
            above[concept, part] = (middle * positive).sum(1) - pairs
    return ap, above
