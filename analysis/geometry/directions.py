"""Concept directions: difference of means per language, and whether one language's direction reads another's sentences.

A concept may have a direction in the residual stream though no single coordinate carries it. Directions come from one
half of the sentences; what they find, and their angle to other languages' directions, is measured on the other, both
ways round. Marks & Tegmark (COLM 2024) for the difference of means; as steering vectors the best of several methods
in CLaS-Bench (arXiv 2601.08331).

Shapes:  L languages   C concepts   N sentences of one language   D hidden size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class HalfLabels:
    """Which sentences of one language carry each concept, by half; both (2, C, N) bool."""

    positives: Tensor
    negatives: Tensor


@dataclass(frozen=True)
class DirectionScores:
    """What directions of one half find in the other, from language (first axis) to language (second)."""

    auroc: np.ndarray
    """(L, L, C) AUROC of the other half's positives against its negatives, mean over both ways round."""
    cosine: np.ndarray
    """(L, L, C) cosine of the directions of the two halves, mean over both ways round."""


def score_directions(states: Sequence[Tensor], labels: Sequence[HalfLabels]) -> DirectionScores:
    """From the sentence vectors (N, D) of every language; each half needs a positive and a negative of each concept."""
    directions = torch.stack([_directions(*both) for both in zip(states, labels, strict=True)])  # (L, 2, C, D)
    languages, _, concepts, _ = directions.shape
    auroc = np.zeros((languages, languages, concepts))
    for read, (vectors, label) in enumerate(zip(states, labels, strict=True)):
        for half in (0, 1):
            scores = torch.einsum("nd,lcd->lcn", vectors, directions[:, 1 - half])
            for concept in range(concepts):
                here = scores[:, concept]
                found = _auroc(here[:, label.positives[half, concept]], here[:, label.negatives[half, concept]])
                auroc[:, read, concept] += 0.5 * found.double().cpu().numpy()
    units = torch.nn.functional.normalize(directions.double(), dim=-1)
    cosine = torch.einsum("lcd,mcd->lmc", units[:, 0], units[:, 1])
    return DirectionScores(auroc, (0.5 * (cosine + cosine.transpose(0, 1))).cpu().numpy())


def _directions(states: Tensor, labels: HalfLabels) -> Tensor:
    """Mean of the positives minus mean of the negatives, (2, C, D)."""
    centred = states - states.mean(dim=0)
    yes, no = (side.to(centred) for side in (labels.positives, labels.negatives))
    return yes @ centred / yes.sum(dim=2, keepdim=True) - no @ centred / no.sum(dim=2, keepdim=True)


def _auroc(positives: Tensor, negatives: Tensor) -> Tensor:
    """Share of pairs in which the positive (L, P) scores higher than the negative (L, M), ties half; (L,)."""
    return 0.5 + 0.5 * torch.sign(positives[:, :, None] - negatives[:, None]).mean(dim=(1, 2))
