"""How well each unit detects each concept: average precision and AUROC of all units, exact, from one sort per unit.

A unit's expertise for a concept is the average precision of its responses as a detector of the concept's positives
(Suau et al., ICML 2022; there one scikit-learn call per unit and concept). With ties grouped as scikit-learn does,

    AP = 1/P * sum over groups g of equal responses, in descending order, of  tp_g * TP_g / n_g

where tp_g are the positives in the group, TP_g and n_g the positives and all texts up to its end. It needs the ranks of
the labelled texts only, so one sort of a pool of texts serves all its concepts, and a null by label permutation costs
as much as that many more concepts. Chance is the prevalence P / (P + negatives), so concepts of unequal prevalence do
not compare; AUROC (chance 0.5) stands beside.

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

from analysis.experts.arrays import numpy_sums, torch_sums

BACKENDS = ("auto", "numba", "numpy", "torch")
TIE_BITS = 13
"""Bits below a unit's largest response within which responses count as equal, see `settle_ties`."""


class Labels:
    """The labelled texts of a pool for all its concepts, checked and indexed once, scored many times.

    Args:
        num_texts: size of the pool.
        positives: for each concept the indices of its positive texts, (P,) int64.
        negatives: for each concept the indices of its negative texts; None means all texts that are not positives.

    Raises:
        ValueError: no concepts; one without positives or negatives, with an index outside the pool, twice, or on both
            sides.
    """

    def __init__(self, num_texts: int, positives: Sequence[Tensor], negatives: Sequence[Tensor] | None = None) -> None:
        if len(positives) == 0:
            raise ValueError("no concepts: nothing to measure")
        if negatives is not None and len(negatives) != len(positives):
            raise ValueError(f"{len(positives)} concepts have positives but {len(negatives)} have negatives")
        self.num_texts = num_texts
        members = [
            _check(concept, num_texts, yes, None if negatives is None else negatives[concept])
            for concept, yes in enumerate(positives)
        ]
        used = np.unique(np.concatenate([side for sides in members for side in sides]))
        self.columns = used
        """Texts that are labelled for any concept; the others are never looked at."""
        self.members = [(np.searchsorted(used, yes), np.searchsorted(used, no)) for yes, no in members]
        """Positives and negatives of each concept as places in `columns`."""
        self.others = all(len(yes) + len(no) == len(used) for yes, no in self.members)
        """Whether every used text is labelled for every concept."""
        self.codes: np.ndarray | None = None
        """(len(columns), C) codes for the compiled scan, made when first needed."""

    @property
    def num_positives(self) -> np.ndarray:
        return np.array([len(yes) for yes, _ in self.members])

    @property
    def num_negatives(self) -> np.ndarray:
        return np.array([len(no) for _, no in self.members])


@dataclass(frozen=True)
class Expertise:
    """Scores of all units for all concepts of one pool."""

    ap: Tensor
    """(C, U) float32 average precision, accumulated in float64."""
    auroc: Tensor
    """(C, U) float32 probability that a positive's response exceeds a negative's, ties half."""


def measure_expertise(values: Tensor, labels: Labels, *, backend: str = "auto") -> Expertise:
    """Average precision and AUROC of every unit for every concept.

    Args:
        values: (U, N) float32 responses of the units to the pool's texts.
        backend: `auto` takes torch for values on an accelerator, else numba if it is installed, else NumPy.

    Raises:
        ValueError: values that are not finite or not of the pool's size; an unknown backend.
    """
    ap, above = _score(values, labels, backend, count_above=True)
    assert above is not None
    pairs = torch.from_numpy((labels.num_positives * labels.num_negatives).astype(np.float64)).to(above.device)
    return Expertise(ap, above.div_(pairs[:, None]).neg_().add_(1.0).float())


def average_precision(
    values: Tensor,
    positives: Sequence[Tensor],
    negatives: Sequence[Tensor] | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Average precision (C, U) of the units `values` (U, N); arguments and errors as `Labels`, `measure_expertise`."""
    if values.dim() != 2:
        raise ValueError(f"values must be (units, texts), got shape {tuple(values.shape)}")
    return score(values, Labels(values.shape[1], positives, negatives), backend=backend)


def score(values: Tensor, labels: Labels, *, backend: str = "auto") -> Tensor:
    """Average precision (C, U) by labels that are indexed already: what a stream of sites calls."""
    return _score(values, labels, backend, count_above=False)[0]


def settle_ties(values: Tensor) -> Tensor:
    """Responses (U, N) on a grid of 2^-13 of each unit's largest magnitude, rounded to a power of two.

    Texts that share the token at which a unit is largest (the same first word, say) have equal responses in exact
    arithmetic. Rounding errors, which depend on the device and on the batch, break such ties, so that ranks and experts
    would differ from machine to machine. The grid is coarser than these errors and finer than float16.
    """
    # Below 2^-100 the scale itself would overflow; such units are dead.
    exponent = torch.frexp(values.abs().amax(1, keepdim=True)).exponent.clamp_(min=-100)
    # Products with powers of two are exact; one power a unit is ten times as fast as torch.ldexp on every response.
    one = torch.ones_like(values[:, :1])
    return (values * torch.ldexp(one, TIE_BITS - exponent)).round_().mul_(torch.ldexp(one, exponent - TIE_BITS))


def _score(values: Tensor, labels: Labels, backend: str, *, count_above: bool) -> tuple[Tensor, Tensor | None]:
    """AP (C, U) float32, and pairs with the negative above the positive (C, U) float64 if wanted."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: choose one of {', '.join(BACKENDS)}")
    if values.dim() != 2 or values.shape[1] != labels.num_texts:
        raise ValueError(f"values must be (units, {labels.num_texts} texts), got shape {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("responses hold NaN or infinite values: no ranking is defined")
    if backend == "auto":
        on_device = values.device.type != "cpu"
        backend = "torch" if on_device else ("numba" if importlib.util.find_spec("numba") else "numpy")
    num_positives = torch.from_numpy(labels.num_positives.astype(np.float64))
    if backend == "torch":
        if len(labels.columns) < labels.num_texts:
            values = values[:, torch.from_numpy(labels.columns).to(values.device)]
        sums, above = torch_sums(values.float(), labels.members, labels.others)
        return sums.div_(num_positives.to(sums.device)[:, None]).float(), above
    array = values.detach().to("cpu", torch.float32).numpy()
    if backend == "numba":
        from analysis.experts.kernels import NEGATIVE, POSITIVE, scan

        if labels.codes is None:
            labels.codes = np.zeros((len(labels.columns), len(labels.members)), dtype=np.uint8)
            for concept, (yes, no) in enumerate(labels.members):
                labels.codes[no, concept] = NEGATIVE
                labels.codes[yes, concept] = POSITIVE
        by_unit = scan(
            array,
            labels.columns,
            labels.codes,
            others=labels.others,
            count_above=count_above,
            num_threads=torch.get_num_threads(),
        )
        found = (by_unit[0].T, None if by_unit[1] is None else by_unit[1].T)
    else:
        if len(labels.columns) < labels.num_texts:
            array = array[:, labels.columns]
        found = numpy_sums(array, labels.members, labels.others, count_above)
    counts = None if found[1] is None else torch.from_numpy(found[1])
    return (torch.from_numpy(found[0]) / num_positives[:, None]).float().contiguous(), counts


def _check(concept: int, num_texts: int, positives: Tensor, negatives: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    yes = torch.as_tensor(positives).cpu().numpy().astype(np.int64).reshape(-1)
    if negatives is None:
        no = np.setdiff1d(np.arange(num_texts), yes)
    else:
        no = torch.as_tensor(negatives).cpu().numpy().astype(np.int64).reshape(-1)
    labelled = np.concatenate([yes, no])
    if yes.size == 0 or no.size == 0:
        raise ValueError(f"concept {concept} has {yes.size} positives and {no.size} negatives: both are needed")
    if labelled.min() < 0 or labelled.max() >= num_texts:
        raise ValueError(f"concept {concept} names a text outside the pool of {num_texts} texts")
    if np.bincount(labelled).max() > 1:
        raise ValueError(f"concept {concept} names a text twice among its positives and negatives")
    return yes, no
