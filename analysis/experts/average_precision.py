"""How well each unit detects each concept: average precision of all units, exact, from one sort per unit.

A unit's expertise for a concept is the average precision of its responses as a detector of the concept's positives
(Suau et al., ICML 2022; there one scikit-learn call per unit and concept). With ties grouped as scikit-learn does,

    AP = 1/P * sum over groups g of equal responses, in descending order, of  tp_g * TP_g / n_g

where tp_g are the positives in the group, TP_g and n_g the positives and all texts up to its end. It needs the ranks of
the labelled texts only, so one sort of a pool of texts serves all its concepts, and a null by label permutation costs
as much as that many more concepts. Chance is the prevalence P / (P + negatives), so concepts of unequal prevalence do
not compare; AUROC (chance 0.5) stands beside the AP of experts.

Two implementations, equal to 1e-6: compiled (`analysis.experts.kernels`) on CPU, torch on an accelerator.

Shapes:  U units   N texts of the pool   C concepts   P positives of a concept   M its labelled texts
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from analysis.experts.kernels import OwnTexts, SharedTexts, scan
from analysis.extraction.passes import all_finite

TIE_BITS = 13
"""Bits below a unit's large responses within which responses count as equal, see `settle_ties`."""
USUAL = 0.99
"""Share of a unit's responses that set its scale: massive activations in a few texts are not what is usual."""
LANES = 16
"""Concepts of the same labelled texts that are walked by themselves: fewer cost less among all others."""
TORCH_BLOCK = 4096
"""Units per step on an accelerator: about 40 bytes x texts x units of temporaries."""


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
        self.fully_labelled = all(len(yes) + len(no) == len(used) for yes, no in self.members)
        """Whether every used text is labelled for every concept."""
        self.num_positives = np.array([len(yes) for yes, _ in self.members])
        self.blocks = _blocks(self.members, len(used))
        """All concepts for the compiled scan."""
        self._members_on: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}

    def members_on(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """`members` on an accelerator, brought there once and in one piece: for every copy the host waits."""
        if device not in self._members_on:
            sides = [torch.from_numpy(side) for sides in self.members for side in sides]
            parts = torch.cat(sides).to(device).split([len(side) for side in sides])
            self._members_on[device] = list(zip(parts[::2], parts[1::2], strict=True))
        return self._members_on[device]


def average_precision(values: Tensor, labels: Labels) -> Tensor:
    """Average precision (C, U) float32 of every unit for every concept, on the device of `values`.

    Args:
        values: (U, N) float32 responses of the units to the pool's texts.

    Raises:
        ValueError: values that are not finite or not of the pool's size.
    """
    if values.dim() != 2 or values.shape[1] != labels.num_texts:
        raise ValueError(f"values must be (units, {labels.num_texts} texts), got shape {tuple(values.shape)}")
    if not all_finite(values):
        raise ValueError("responses hold NaN or infinite values: no ranking is defined")
    sums = torch_sums(values, labels) if values.device.type != "cpu" else _compiled_sums(values, labels)
    num_positives = torch.from_numpy(labels.num_positives.astype(np.float64)).to(sums.device)
    return (sums / num_positives[:, None]).float().contiguous()


def settle_ties(values: Tensor) -> Tensor:
    """Responses (U, N) on a grid of 2^-13 of each unit's large magnitudes, rounded to a power of two.

    Texts that share the token at which a unit is largest (the same first word, say) have equal responses in exact
    arithmetic. Rounding errors, which depend on the device and on the batch, break such ties, so that ranks and experts
    would differ from machine to machine. The grid is coarser than these errors and finer than float16. Large is the
    99 % quantile, so that one massive activation does not make all others equal; what is larger than that has a grid of
    its own magnitude. A unit that is 0 on more than 99 % of the texts (a ReLU that fires on the positives of a concept
    alone) has the grid of its largest response.
    """
    sizes = values.abs()
    largest = sizes.topk(max(1, round((1.0 - USUAL) * values.shape[1])), dim=1).values
    usual = torch.where(largest[:, -1:] > 0, largest[:, -1:], largest[:, :1])
    # Below 2^-100 the scale itself would overflow; such units are dead.
    exponent = torch.frexp(usual).exponent.clamp_(min=-100)
    # Products with powers of two are exact; one power a unit is ten times as fast as torch.ldexp on every response.
    one = torch.ones_like(values[:, :1])
    settled = (values * torch.ldexp(one, TIE_BITS - exponent)).round_().mul_(torch.ldexp(one, exponent - TIE_BITS))
    massive = sizes > torch.ldexp(one, exponent)
    if bool(massive.any()):
        mantissa, own = torch.frexp(values[massive])
        settled[massive] = torch.ldexp((mantissa * 2.0**TIE_BITS).round_() * 2.0**-TIE_BITS, own)
    return settled


def _compiled_sums(values: Tensor, labels: Labels) -> Tensor:
    """Sums of precisions at positives (C, U) float64."""
    responses = values.detach().float().numpy()
    sums = scan(responses, labels.columns, labels.blocks, len(labels.members), torch.get_num_threads())
    return torch.from_numpy(sums.T)


def torch_sums(values: Tensor, labels: Labels) -> Tensor:
    """As the compiled scan, by array operations on the device of `values`."""
    if len(labels.columns) < labels.num_texts:
        values = values[:, torch.from_numpy(labels.columns).to(values.device)]
    sums = torch.empty(len(labels.members), len(values), dtype=torch.float64, device=values.device)
    sides = labels.members_on(values.device)
    for first in range(0, len(values), TORCH_BLOCK):
        part = slice(first, first + TORCH_BLOCK)
        ordered, texts = torch.sort(values[part].float().neg(), dim=1)
        ends = torch.searchsorted(ordered, ordered, right=True)
        ranks = torch.empty_like(texts, dtype=torch.int32).scatter_(1, texts, ends.int())
        for concept, (yes, no) in enumerate(sides):
            if labels.fully_labelled:
                among = ranks[:, yes].sort(1).values
                hits = torch.searchsorted(among, among, right=True)
                sums[concept, part] = (hits.double() / among).sum(1)
                continue
            among, places = ranks[:, torch.cat([yes, no])].sort(1)
            positive = places < len(yes)
            last_of_run = torch.searchsorted(among, among, right=True)
            hits = positive.cumsum(1).gather(1, last_of_run - 1)
            sums[concept, part] = (hits.double() / last_of_run * positive).sum(1)
    return sums


def _blocks(members: Sequence[tuple[np.ndarray, np.ndarray]], num_texts: int) -> list[SharedTexts | OwnTexts]:
    """Concepts with the same labelled texts together, if they fill the lanes of a vector unit; the others as one."""
    labelled, positive = np.zeros((2, num_texts, len(members)), dtype=bool)
    alike: dict[bytes, list[int]] = {}
    for concept, (yes, no) in enumerate(members):
        positive[yes, concept] = True
        labelled[[*yes, *no], concept] = True
        alike.setdefault(np.packbits(labelled[:, concept]).tobytes(), []).append(concept)
    blocks: list[SharedTexts | OwnTexts] = []
    rest = []
    for concepts in alike.values():
        used = labelled[:, concepts[0]]
        if used.all() or len(concepts) >= LANES:
            places = None if used.all() else np.where(used, np.cumsum(used) - 1, -1)
            own = np.ascontiguousarray(positive[used][:, concepts]).view(np.uint8)
            blocks.append(SharedTexts(np.array(concepts), places, own))
        else:
            rest.append(concepts)
    if rest:
        every, set_of = np.concatenate(rest), np.repeat(np.arange(len(rest)), [len(one) for one in rest])
        blocks.append(OwnTexts(every, set_of, labelled[:, [one[0] for one in rest]], positive[:, every]))
    return blocks


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
