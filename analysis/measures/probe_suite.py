"""Language identity read by several probes, on the tokens and folds of the language probe.

Beside `LanguageProbe`, whose logistic regression is the paper's: closed-form probes, a non-linear probe, and the length
of an online code.

Shapes:  Y layers   N sampled tokens   S seeds
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from analysis.base import Row
from analysis.extraction.sites import find_sites
from analysis.extraction.states import unit_hash
from analysis.measures.text_analysis import TokenProbe
from analysis.probes.closed_form import fit_lda, fit_ridge
from analysis.probes.mlp import fit_mlp
from analysis.probes.online_code import online_code
from analysis.probes.scores import score_rows
from analysis.snapshots import Snapshot

PROBES = ("ridge", "lda", "mlp", "mdl")


@dataclass(kw_only=True)
class ProbeSuite(TokenProbe):
    """Language identity by ridge, LDA, MLP and online code.

    Rows, per layer and (without layer) as the mean over layers: `accuracy_ridge`, `accuracy_lda`, `accuracy_mlp` with
    intervals over sentences, chance 1 / languages; `compression_mdl` (uniform code / online code of the training
    labels, chance 1) and `compression_mdl_control` (the same for a random language per token type, first seed).

    Raises (when measuring):
        FileNotFoundError, ValueError: see `TokenProbe.draw`.
    """

    probes: list[str] = field(default_factory=lambda: ["ridge", "lda", "mdl"])
    """Of ridge, lda, mlp, mdl; mlp costs several times the others together."""
    ridge_penalty: float = 1.0
    """Weight of the squared norm against the sum of squared errors."""
    shrinkage: float = 0.1
    """Of LDA's covariance, 0 to 1."""
    hidden_units: int = 64
    """Width of the MLP's layer."""
    mlp_steps: int = 300
    """Optimizer steps of the MLP, 256 tokens each."""

    default_name: ClassVar[str] = "probe_suite"
    headlines: ClassVar[tuple[str, ...]] = ("accuracy_mlp",)
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [probe for probe in self.probes if probe not in PROBES]
        if unknown or not self.probes:
            raise ValueError(f"{self.name}: unknown probe {unknown or '(none)'}: choose from {', '.join(PROBES)}")
        if not 0 <= self.shrinkage <= 1 or self.ridge_penalty <= 0:
            raise ValueError(f"{self.name}: shrinkage must lie in [0, 1] and ridge_penalty be positive")
        if self.hidden_units < 1 or self.mlp_steps < 2:
            raise ValueError(f"{self.name}: hidden_units must be at least 1 and mlp_steps at least 2")

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        sample, folds = self.draw(snapshot)
        size = len(sample.languages)
        labels = torch.from_numpy(sample.language)
        train = torch.from_numpy(np.stack([fold.train for fold in folds]))
        test = np.stack([fold.test for fold in folds])
        # The code is sent sentence by sentence, all languages of a sentence together, so that every block has them all.
        rank = np.array([unit_hash("order", folds[0].seed, key) for key in sample.key_names])
        by_key = np.argsort(rank[sample.key], kind="stable")
        order = torch.from_numpy(by_key[folds[0].train[by_key]])
        types, inverse = np.unique(sample.token, return_inverse=True)
        draws = np.array([unit_hash("control", folds[0].seed, token) for token in types])
        control = torch.from_numpy((draws * size).astype(np.int64)[inverse])
        sites = find_sites(snapshot.model, "hidden")
        correct: dict[str, list[np.ndarray]] = {probe: [] for probe in self.probes if probe != "mdl"}
        codes: dict[str, list[float]] = {"compression_mdl": [], "compression_mdl_control": []}
        for _, states in self.states(snapshot):
            own, rows = labels.to(states.device), train.to(states.device)
            for probe, results in correct.items():
                predicted = self._fit(probe, states, own, rows, size).argmax(dim=2)
                results.append((predicted == own).cpu().numpy())
            if "mdl" in self.probes:
                for metric, target in (("compression_mdl", labels), ("compression_mdl_control", control)):
                    place = order.to(states.device)
                    codes[metric].append(online_code(states[place], target.to(states.device)[place], size).compression)
        layers = [site.layer for site in sites]
        for probe, results in correct.items():
            yield from score_rows(f"accuracy_{probe}", np.stack(results), test, sample, layers, 1 / size)
        for metric, values in codes.items():
            if values:
                yield Row(metric=metric, value=float(np.mean(values)), chance=1.0)
                for layer, value in zip(layers, values, strict=True):
                    yield Row(metric=metric, value=value, layer=layer, chance=1.0)

    def _fit(self, probe: str, states: Tensor, labels: Tensor, train: Tensor, size: int) -> Tensor:
        """Scores (S, N, L)."""
        if probe == "ridge":
            return fit_ridge(states, labels, train, size, self.ridge_penalty)
        if probe == "lda":
            return fit_lda(states, labels, train, size, self.shrinkage)
        return fit_mlp(states, labels, train, size, self.seeds, hidden=self.hidden_units, steps=self.mlp_steps)
