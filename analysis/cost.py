"""What a list of analyses costs, before anything runs: FLOPs of one snapshot, counted from options and texts.

Matrix products count as they are. What is not one (ranking, permutations, the small products of a solver) runs far
from a processor's peak; it counts as the FLOPs of matrix products that take as long, by the factors below, measured on
a CPU on 2026-11-25 beside float32 products. `tests/benchmarks/bench_watching.py` holds all of it against a snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

AROUND = 300.0
"""FLOPs in the time of what surrounds the products (norms, softmax, GELU, pooling), for a token and a linear output."""
THIN = 3.0
"""A product with a few columns (problems x classes of a probe) takes as long as this many times its FLOPs."""
CALLS = 60e6
"""FLOPs in the time of the calls around one iteration of a probe's solver."""
TURNED = 100.0
"""FLOPs, times the cube of the width, in the time that the eigenbasis of a layer's states takes."""
SORTED = 1000.0
"""FLOPs in the time that one response of one unit takes to be checked, rounded and sorted."""
RANKED = 150.0
"""FLOPs in the time of one labelled text of one concept in the ranking of one unit."""
PERMUTED = 200.0
"""FLOPs in the time of one permutation of one entry of a similarity matrix of two languages."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer as far as costs go."""

    layers: int
    width: int
    ffn: int
    vocabulary: int
    body: float
    """FLOPs of a forward pass without the head, per token."""
    head: float
    """FLOPs of the logits of one token."""

    @property
    def linear_units(self) -> int:
        """Outputs of all linear layers of the blocks."""
        return self.layers * (5 * self.width + self.ffn)

    @property
    def read(self) -> float:
        """FLOPs of reading one token: a forward pass without the head, and what surrounds its products."""
        return self.body + AROUND * self.linear_units

    def tokens(self, sizes: Iterable[int], max_length: int) -> float:
        """Tokens of texts of these sizes (UTF-8 bytes), about: a larger vocabulary has longer ones."""
        return sum(min(float(max_length), 1 + 4 * size / math.log2(self.vocabulary)) for size in sizes)

    def probe(self, rows: int, classes: int, iterations: float) -> float:
        """FLOPs of fitting one linear probe on `rows` states."""
        size = (self.width + 1) * classes
        hessian = min(rows, max(1500, 4 * self.width)) * size**2 + size**3 / 3 if size <= 10_000 else 0.0
        basis = TURNED * self.width**3 + 6 * rows * self.width**2
        return iterations * (THIN * 4 * rows * size + CALLS) + hessian + basis
