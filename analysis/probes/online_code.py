"""Minimum description length of the labels given the states: the online code of Voita & Titov (EMNLP 2020).

A language that is easy to read off needs few examples, which accuracy does not show.

Shapes:  N rows   D features   P problems   K classes
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from analysis.probes.logistic import fit_logistic

CODE_FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the blocks of the online code, as shares of all rows (Voita & Titov 2020, section 3.2.2)."""
FLOOR = 1e-3
"""Share of the uniform code in every prediction, so that no surprise costs infinitely many bits."""
CODE_TOLERANCE = 1e-5
"""Gap in nats at which the regressions of a code stop: moves code lengths by less than 1e-3 of themselves."""


def online_code(features: Tensor, labels: Tensor, num_classes: int) -> list[float]:
    """Compression of the labels (C, N) by their code: uniform code / length of the code, both in bits.

    Every row is coded in the order of the features' rows, each block by a logistic regression on all rows before. The
    first block is sent uniformly: L = t_1 log2 K - sum_i log2 p_i(block i + 1). Below 1 if nothing can be read off the
    states, as an online probe over-fits.

    Raises:
        ValueError: fewer than two rows, or one class only.
    """
    num_codes, count = labels.shape
    if count < 2 or num_classes < 2:
        raise ValueError(f"{count} rows of {num_classes} classes: a code needs at least two of both")
    ends = sorted({min(count, max(num_classes, round(fraction * count))) for fraction in CODE_FRACTIONS})
    bits = torch.full((num_codes,), ends[0] * math.log2(num_classes), dtype=torch.float64)
    # A regression needs no row behind the block that it codes. The many small ones share a solve, the large go alone.
    blocks = list(pairwise(ends))
    small = [block for block in blocks if block[1] <= count / 8]
    for group in [small, *([block] for block in blocks[len(small) :])]:
        if not group:
            continue
        last = group[-1][1]
        place = torch.arange(last, device=features.device)
        before = place[None] < torch.tensor([start for start, _ in group], device=features.device)[:, None]
        sent = labels[:, :last].repeat_interleave(len(group), dim=0)  # all blocks of the first code, then of the next
        fit = fit_logistic(features[:last], sent, before.repeat(num_codes, 1), num_classes, tolerance=CODE_TOLERANCE)
        probability = (1 - FLOOR) * torch.exp2(-fit.surprise(sent).double()) + FLOOR / num_classes
        for code, of_blocks in enumerate(probability.cpu().split(len(group))):
            bits[code] -= sum(own[start:end].log2().sum() for own, (start, end) in zip(of_blocks, group, strict=True))
    return (count * math.log2(num_classes) / bits).tolist()
