"""Language identity read by other probes than the language probe's, on the same tokens and folds.

A non-linear probe: does the conclusion hang on the classifier? And the length of an online code: a language that is
easy to read off needs few examples, which accuracy does not show.

Shapes:  Y layers   N sampled tokens of all seeds   S seeds   L languages
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from analysis.base import Row
from analysis.cost import Shape
from analysis.extraction.sites import find_sites
from analysis.extraction.states import TokenSample, unit_hash
from analysis.measures.text_analysis import TokenProbe, shown_layers
from analysis.probes.folds import Fold, control_labels
from analysis.probes.mlp import fit_mlp
from analysis.probes.online_code import online_code
from analysis.probes.scores import score_rows
from analysis.snapshots import Snapshot

Probe = Literal["mlp", "mdl"]


@dataclass(kw_only=True)
class ProbeSuite(TokenProbe):
    """Language identity by MLP and online code.

    Rows, per layer of `layers` and (without layer) as their mean: `accuracy_mlp` with an interval over sentences,
    chance 1 / languages; `compression_mdl` (uniform code / online code of the training labels) and
    `compression_mdl_control` (the same for a random language per token type), both of the first seed; their chance is
    the compression of shuffled labels, which is below 1, the more the wider the states: an online probe over-fits.

    Raises (when measuring):
        FileNotFoundError, ValueError: see `TokenProbe.draw`.
    """

    probes: list[Probe] = field(default_factory=lambda: list(get_args(Probe)))
    """Of mlp, mdl."""
    layers: list[int] | None = None
    """Layers to read, -1 for embeddings; None means embeddings, middle and last: a second opinion needs no curve."""
    hidden_units: int = 64
    """Width of the MLP's layer."""
    mlp_steps: int = 300
    """Optimizer steps of the MLP, 256 tokens each; at least 2."""

    default_name: ClassVar[str] = "probe_suite"
    headlines: ClassVar[tuple[str, ...]] = ("accuracy_mlp",)
    version: ClassVar[int] = 4
    positive: ClassVar[tuple[str, ...]] = (*TokenProbe.positive, "hidden_units")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [probe for probe in self.probes if probe not in get_args(Probe)]
        if unknown or not self.probes:
            allowed = ", ".join(get_args(Probe))
            raise ValueError(f"{self.name}: unknown probe {unknown or '(none)'}: choose from {allowed}")
        if self.layers == []:
            raise ValueError(f"{self.name}: layers=[] reads no layer: name some, or leave the option out")
        if self.mlp_steps < 2:
            raise ValueError(f"{self.name}: mlp_steps={self.mlp_steps} must be at least 2")

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        sample, folds = self.draw(snapshot)
        size = len(sample.languages)
        order, targets = self._code_plan(sample, folds[0])
        sites = find_sites(snapshot.model, "hidden")
        layers = shown_layers(self.layers, sites)
        correct = np.zeros((len(layers), len(folds), len(sample)), dtype=bool)
        codes = np.zeros((len(layers), len(targets)))
        at_once = max(1, self.max_bytes // (4 * sites[0].num_units * len(sample) * torch.float32.itemsize))
        together: list[Tensor] = []
        for index, (_, states) in enumerate(self.states(snapshot, layers)):
            together.append(states)
            if "mlp" in self.probes and (len(together) == at_once or index == len(layers) - 1):
                correct[index + 1 - len(together) : index + 1] = self._right_of_mlp(together, sample, folds)
            if len(together) == at_once:
                together = []
            if "mdl" in self.probes:
                rows = states[torch.from_numpy(order).to(states.device)]
                labels = torch.from_numpy(np.stack(list(targets.values()))).to(states.device)
                codes[index] = online_code(rows, labels, size)
        if "mlp" in self.probes:
            test = np.stack([fold.test for fold in folds])
            yield from score_rows("accuracy_mlp", correct, test, sample, layers, 1 / size)
        if "mdl" in self.probes:
            for metric in ("compression_mdl", "compression_mdl_control"):
                place, null = list(targets).index(metric), list(targets).index("shuffled")
                yield Row(metric=metric, value=float(codes[:, place].mean()), chance=float(codes[:, null].mean()))
                for layer, code in zip(layers, codes, strict=True):
                    yield Row(metric=metric, value=float(code[place]), layer=layer, chance=float(code[null]))

    def work(self, shape: Shape) -> float:
        """Without a forward pass: the states are those of the language probe of equal settings."""
        languages, _ = self.read_tokens(shape)
        rows, layers = languages * self.tokens_per_language, len(self.layers or (-1, 0, 1))
        mlp = 6 * 256 * self.mlp_steps * len(self.seeds) * self.hidden_units * (shape.width + languages)
        codes = 3 * shape.probe(2 * rows, languages, 90)
        return layers * (("mlp" in self.probes) * mlp + ("mdl" in self.probes) * codes)

    def _code_plan(self, sample: TokenSample, fold: Fold) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Training tokens in the order in which they are sent, and the labels of each code in that order.

        Sentence by sentence, all languages of a sentence together, so that every block has them all.
        """
        rank = np.array([unit_hash("order", fold.seed, key) for key in sample.key_names])
        by_key = np.argsort(rank[sample.key], kind="stable")
        order = by_key[fold.train[by_key]]
        control = control_labels(sample, fold.seed)
        own = sample.language[order]
        shuffled = np.random.default_rng(fold.seed).permutation(own)
        return order, {"compression_mdl": own, "compression_mdl_control": control[order], "shuffled": shuffled}

    def _right_of_mlp(self, states: Sequence[Tensor], sample: TokenSample, folds: Sequence[Fold]) -> np.ndarray:
        """Whether the MLP is right (Y, S, N) on every token of each seed, in states of some layers: one batch."""
        device = states[0].device
        labels = [torch.from_numpy(sample.language[fold.rows]).to(device) for fold in folds]
        scores = fit_mlp(
            [layer[fold.rows] for layer in states for fold in folds],
            labels * len(states),
            [torch.from_numpy(fold.train[fold.rows]).to(device) for fold in folds] * len(states),
            len(sample.languages),
            [fold.seed for fold in folds] * len(states),
            hidden=self.hidden_units,
            steps=self.mlp_steps,
        )
        right = np.zeros((len(states), len(folds), len(sample)), dtype=bool)
        for place, found in enumerate(scores):
            layer, number = divmod(place, len(folds))
            right[layer, number, folds[number].rows] = (found.argmax(dim=1) == labels[number]).cpu().numpy()
        return right
