"""Permutation calibration: how much of a similarity is there beyond what unmatched sentences give.

After Gröger, Wen & Brbić (ICML 2026, arXiv 2602.14486), algorithms 1 and 2: a raw similarity between two
representations has a floor that depends on the numbers of sentences and dimensions, so it is set against the same
similarity after the correspondence of the sentences has been broken. The same permutations serve all layers and pairs;
an aggregate over layers is calibrated by the aggregates of its nulls, which answers for the search over layers.

Shapes:  K permutations   n sentences
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from analysis.statistics import wilson_bounds

RESOLUTION = 1e-6
"""Similarities this close are equal: shares of few sentences tie often, and float32 sums of them differ by rounding."""


@dataclass(frozen=True)
class Calibrated:
    """A similarity set against its null; all fields have the shape of the observed similarity."""

    score: Tensor
    """0 at or below the threshold, 1 at the largest attainable similarity."""
    p: Tensor
    """(1 + nulls at least as large) / (K + 1)."""
    threshold: Tensor
    """The (1 - alpha) order statistic of the nulls and the observation together."""


def draw_permutations(num_sentences: int, count: int, seed: int) -> Tensor:
    """(K, n) int64: independent permutations of the sentences, a function of the arguments alone."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([generator.permutation(num_sentences) for _ in range(count)]))


def draw_signs(num_sentences: int, count: int, seed: int) -> Tensor:
    """(K, n) of +1 and -1: for each sentence, whether the two languages of a pair are exchanged."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.choice(np.array([-1.0, 1.0], dtype=np.float32), size=(count, num_sentences)))


def calibrate(observed: Tensor, null: Tensor, *, alpha: float = 0.05) -> Calibrated:
    """Calibrate similarities (...), which are 1 at most, by their nulls (K, ...).

    Args:
        alpha: level of the threshold; under the null the score is 0 with a probability of at least 1 - alpha.

    Raises:
        ValueError: no nulls, shapes that do not match, or `alpha` outside (0, 1).
    """
    count = null.shape[0]
    if count < 1 or null.shape[1:] != observed.shape:
        raise ValueError(f"nulls {tuple(null.shape)} do not belong to similarities {tuple(observed.shape)}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: must lie between 0 and 1")
    place = min(max(math.ceil((1 - alpha) * (count + 1)), 1), count + 1)
    threshold = torch.cat([observed[None], null]).sort(dim=0).values[place - 1]
    p = (1 + (null >= observed - RESOLUTION).sum(dim=0)) / (count + 1)
    excess = torch.where(observed > threshold + RESOLUTION, observed - threshold, 0.0)
    score = (excess / (1.0 - threshold).clamp(min=1e-12)).clamp(0.0, 1.0)
    return Calibrated(score, p, threshold)


def influence_interval(value: float, influence: np.ndarray, is_share: bool) -> tuple[float, float]:
    """95 % bounds of a similarity from the influence (n,) of its sentences, see `Similarity.influence`.

    A share takes Wilson's bounds, with as many answers as its standard error is worth: at 0 or 1 no sentence differs
    from another, and an interval without width would cover nothing.
    """
    size = len(influence)
    error = float(influence.std(ddof=1)) / math.sqrt(size)
    if not is_share:
        half = float(student.ppf(0.975, size - 1)) * error
        return value - half, value + half
    answers = value * (1 - value) / error**2 if 0.0 < value < 1.0 and error > 0.0 else float(size)
    low, high = wilson_bounds(value, answers, 1.96)
    return min(value, low), max(value, high)
