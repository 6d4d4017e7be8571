"""How well each unit detects each concept: average precision and AUROC of all units, exact, from one sort per unit.

A unit's expertise for a concept is the average precision of its responses as a detector of the concept's positives
(Suau et al., ICML 2022; there one scikit-learn call per unit and concept). With ties grouped as scikit-learn does,

    AP = 1/P * sum over groups g of equal responses, in descending order, of  tp_g * TP_g / n_g

where tp_g are the positives in the group, TP_g and n_g the positives and all texts up to its end. It needs the ranks of
the labelled texts only, so one sort of a pool of texts serves all its concepts, and a null by label permutation costs
as much as that many more concepts. Chance is the prevalence P / (P + negatives), so concepts of unequal prevalence do
not compare; AUROC (chance 0.5) stands beside. Called by `analysis.experts` and by anyone with labelled responses.

Three implementations, equal to 1e-6: numba on CPU, NumPy wherever numba is missing, torch on an accelerator.

Shapes:  U units   N texts of the pool   C concepts   P positives of a concept   M its labelled texts
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BACKENDS = ("auto", "numba", "numpy", "torch")
NUMPY_BLOCK = 256
"""Units per step of the NumPy path, so that its temporaries stay in cache."""
TORCH_BLOCK = 4096
"""Units per step of the torch path: about 40 bytes x texts x units of temporaries."""

Members = list[tuple[np.ndarray, np.ndarray]]
"""Positives and negatives of each concept as int64 indices."""


@dataclass(frozen=True)
class Expertise:
    """Scores of all units for all concepts of one pool."""

    ap: Tensor
    """(C, U) float32 average precision, accumulated in float64."""
    auroc: Tensor
    """(C, U) float32 probability that a positive's response exceeds a negative's, ties half."""


def measure_expertise(
    values: Tensor,
    positives: Sequence[Tensor],
    negatives: Sequence[Tensor] | None = None,
    *,
    backend: str = "auto",
) -> Expertise:
    """Average precision and AUROC of every unit for every concept.

    Args:
        values: (U, N) float32 responses of the units to the pool's texts.
        positives: for each concept the indices of its positive texts, (P,) int64.
        negatives: for each concept the indices of its negative texts; None means all texts that are not positives.
        backend: `auto` takes torch for values on an accelerator, else numba if it is installed, else NumPy.

    Raises:
        ValueError: values that are not finite; a concept without positives or negatives, with an index outside the
            pool, twice, or on both sides.
    """
    ap, above, members = _sums(values, positives, negatives, backend, count_above=True)
    assert above is not None
    pairs = torch.tensor([len(yes) * len(no) for yes, no in members], dtype=torch.float64, device=above.device)
    return Expertise(ap, above.div_(pairs[:, None]).neg_().add_(1.0).float())


def average_precision(
    values: Tensor,
    positives: Sequence[Tensor],
    negatives: Sequence[Tensor] | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Average precision (C, U) alone, which is faster; arguments and errors as `measure_expertise`."""
    return _sums(values, positives, negatives, backend, count_above=False)[0]


def _sums(
    values: Tensor,
    positives: Sequence[Tensor],
    negatives: Sequence[Tensor] | None,
    backend: str,
    *,
    count_above: bool,
) -> tuple[Tensor, Tensor | None, Members]:
    """AP (C, U) float32, pairs with the negative above the positive (C, U) float64 if wanted, and the labels."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: choose one of {', '.join(BACKENDS)}")
    if values.dim() != 2:
        raise ValueError(f"values must be (units, texts), got shape {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("responses hold NaN or infinite values: no ranking is defined")
    members = _check_labels(values.shape[1], positives, negatives)
    others = negatives is None
    if backend == "auto":
        on_device = values.device.type != "cpu"
        backend = "torch" if on_device else ("numba" if importlib.util.find_spec("numba") else "numpy")
    if backend == "torch":
        above: Tensor | None
        ap, above = _torch_sums(values.float(), members, others)
    else:
        array = values.detach().to("cpu", torch.float32).numpy()
        method = _numba_sums if backend == "numba" else _numpy_sums
        sums, counts = method(array, members, others, count_above)
        ap = torch.from_numpy(sums)
        above = None if counts is None else torch.from_numpy(counts)
    num_positives = torch.tensor([len(yes) for yes, _ in members], dtype=torch.float64, device=ap.device)
    return ap.div_(num_positives[:, None]).float(), above, members


def _check_labels(num_texts: int, positives: Sequence[Tensor], negatives: Sequence[Tensor] | None) -> Members:
    if len(positives) == 0:
        raise ValueError("no concepts: nothing to measure")
    if negatives is not None and len(negatives) != len(positives):
        raise ValueError(f"{len(positives)} concepts have positives but {len(negatives)} have negatives")
    members: Members = []
    for concept, chosen in enumerate(positives):
        yes = torch.as_tensor(chosen).cpu().numpy().astype(np.int64).reshape(-1)
        if negatives is None:
            no = np.setdiff1d(np.arange(num_texts), yes)
        else:
            no = torch.as_tensor(negatives[concept]).cpu().numpy().astype(np.int64).reshape(-1)
        labelled = np.concatenate([yes, no])
        if yes.size == 0 or no.size == 0:
            raise ValueError(f"concept {concept} has {yes.size} positives and {no.size} negatives: both are needed")
        if labelled.min() < 0 or labelled.max() >= num_texts:
            raise ValueError(f"concept {concept} names a text outside the pool of {num_texts} texts")
        if np.bincount(labelled).max() > 1:
            raise ValueError(f"concept {concept} names a text twice among its positives and negatives")
        members.append((yes, no))
    return members


def _numba_sums(
    values: np.ndarray, members: Members, others: bool, count_above: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    from analysis.expertise_kernels import scan

    num_texts = values.shape[1]
    return scan(
        values,
        _by_text([yes for yes, _ in members], num_texts),
        None if others else _by_text([no for _, no in members], num_texts),
        len(members),
        count_above=count_above,
        num_threads=torch.get_num_threads(),
    )


def _by_text(lists: list[np.ndarray], num_texts: int) -> tuple[np.ndarray, np.ndarray]:
    """From texts of each concept to concepts of each text, as (starts, concepts)."""
    texts = np.concatenate(lists)
    concepts = np.repeat(np.arange(len(lists), dtype=np.int32), [len(entries) for entries in lists])
    starts = np.zeros(num_texts + 1, dtype=np.int64)
    np.cumsum(np.bincount(texts, minlength=num_texts), out=starts[1:])
    return starts, concepts[np.argsort(texts, kind="stable")]


def _numpy_sums(
    values: np.ndarray, members: Members, others: bool, count_above: bool
) -> tuple[np.ndarray, np.ndarray | None]:
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


def _torch_sums(values: Tensor, members: Members, others: bool) -> tuple[Tensor, Tensor]:
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
