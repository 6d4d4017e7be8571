"""How well each layer knows the language of a token: logistic regression on hidden states, beside its controls.

The probe of Riemenschneider & Frank (ACL 2025, section 4): one classifier per layer on sampled token states, several
seeds. Every accuracy comes with what it has to be compared to:

- majority: the share of the largest class (classes are balanced, so 1 / languages);
- shuffled: the same probe trained on permuted labels;
- token identity: a unigram classifier that sees only which token it is, as the embedding layer can;
- control task: a random language for every token type (Hewitt & Liang, EMNLP 2019); selectivity is the difference;
- the untrained network: the step-0 rows of the same run.

The information that a layer gives about the language is that of the same probe: V-information (Xu et al., ICLR 2020),
I = H(language) - H(language | state) in bits, by the held-out log loss.

Folds are disjoint in sentences, and a key (a sentence and its translations) lies in the same fold in all languages.

Shapes:  Y layers   N sampled tokens   S seeds   P problems (seeds, then controls)   L languages   G keys
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from analysis.base import Row
from analysis.extraction.sites import find_sites
from analysis.extraction.states import TokenSample, unit_hash
from analysis.measures.text_analysis import TokenProbe
from analysis.probes.folds import Fold, shared_tokens, token_identity_accuracy
from analysis.probes.logistic import fit_logistic
from analysis.probes.scores import score_rows
from analysis.snapshots import Snapshot

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class LanguageProbe(TokenProbe):
    """Accuracy of a language classifier on the token states of every layer, embeddings (layer -1) included.

    Rows, per layer and (without layer) as the mean over layers: `accuracy` (mean over seeds with a bootstrap interval
    over keys; also per seed), `accuracy_shared` (on tokens that occur in two languages or more), `information` (bits,
    at most log2 of the number of languages), `accuracy_shuffled`, `accuracy_control`, `selectivity`, `recall` per
    language, `confusion` (share of `language` taken for `other_language`; on some layers); without layer only
    `accuracy_majority` and `accuracy_token_identity`.

    Raises (when measuring):
        FileNotFoundError, ValueError: see `TokenProbe.draw`.
    """

    regularisation: float = 1.0
    """scikit-learn's C: smaller is stronger."""
    controls: bool = True
    """Fit the shuffled-label and control-task probes (for the first seed)."""
    confusion_layers: list[int] | None = None
    """Layers for which the confusion matrix is given; None means embeddings, middle and last."""

    default_name: ClassVar[str] = "language_probe"
    headlines: ClassVar[tuple[str, ...]] = ("accuracy", "middle_dip", "accuracy_shared")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.regularisation <= 0:
            raise ValueError(f"{self.name}: regularisation={self.regularisation} must be positive")

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        sample, folds = self.draw(snapshot)
        labels, train = self._problems(sample, folds)
        sites = find_sites(snapshot.model, "hidden")
        predicted = np.empty((len(sites), *labels.shape), dtype=np.int64)  # (Y, P, N)
        surprise = np.empty((len(sites), len(folds), len(sample)))  # (Y, S, N) bits for the true language
        for index, (_, values) in enumerate(self.states(snapshot)):
            fit = fit_logistic(
                values,
                torch.from_numpy(labels),
                torch.from_numpy(train),
                len(sample.languages),
                inverse_penalty=self.regularisation,
            )
            predicted[index] = fit.predictions().cpu().numpy()
            surprise[index] = fit.surprise(torch.from_numpy(sample.language))[: len(folds)].cpu().numpy()
        layers = [site.layer for site in sites]
        yield from self._accuracies(sample, folds, layers, predicted[:, : len(folds)])
        test = np.stack([fold.test for fold in folds])
        gained = np.log2(len(sample.languages)) - surprise
        yield from score_rows("information", gained, test, sample, layers, 0.0)
        yield from self._baselines(sample, folds, layers, predicted, labels)
        yield from self._by_language(sample, folds, layers, predicted[:, : len(folds)])

    def _problems(self, sample: TokenSample, folds: Sequence[Fold]) -> tuple[np.ndarray, np.ndarray]:
        """Labels and training masks (P, N): the seeds, then shuffled labels and the control task."""
        labels = [sample.language] * len(folds)
        train = [fold.train for fold in folds]
        if self.controls:
            first = folds[0]
            shuffled = sample.language.copy()
            shuffled[first.train] = np.random.default_rng(first.seed).permutation(shuffled[first.train])
            types, inverse = np.unique(sample.token, return_inverse=True)
            draws = np.array([unit_hash("control", first.seed, token) for token in types])
            labels += [shuffled, (draws * len(sample.languages)).astype(np.int64)[inverse]]
            train += [first.train, first.train]
        return np.stack(labels), np.stack(train)

    def _accuracies(
        self, sample: TokenSample, folds: Sequence[Fold], layers: Sequence[int], predicted: np.ndarray
    ) -> Iterator[Row]:
        test = np.stack([fold.test for fold in folds])  # (S, N)
        correct = predicted == sample.language
        yield from score_rows("accuracy", correct, test, sample, layers, 1 / len(sample.languages), self.seeds)
        shared = test & shared_tokens(sample)
        if shared.any(axis=1).all():
            largest = float(np.mean([np.bincount(sample.language[row]).max() / row.sum() for row in shared]))
            yield from score_rows("accuracy_shared", correct, shared, sample, layers, largest)
        else:
            logger.info("%s: no test token is shared by two languages, so no accuracy_shared", self.name)

    def _baselines(
        self,
        sample: TokenSample,
        folds: Sequence[Fold],
        layers: Sequence[int],
        predicted: np.ndarray,
        labels: np.ndarray,
    ) -> Iterator[Row]:
        chance = 1 / len(sample.languages)
        identity = float(np.mean([token_identity_accuracy(sample, fold) for fold in folds]))
        yield Row(metric="accuracy_majority", value=chance, chance=chance)
        yield Row(metric="accuracy_token_identity", value=identity, chance=chance)
        if not self.controls:
            return
        test = folds[0].test
        own = (predicted[:, 0] == sample.language)[:, test].mean(axis=1)  # (Y,)
        shuffled = (predicted[:, -2] == sample.language)[:, test].mean(axis=1)
        control = (predicted[:, -1] == labels[-1])[:, test].mean(axis=1)
        frequent = float(np.bincount(labels[-1][test]).max() / test.sum())
        measured = [
            ("accuracy_shuffled", shuffled, chance),
            ("accuracy_control", control, frequent),
            ("selectivity", own - control, 0.0),
        ]
        for metric, values, null in measured:
            yield Row(metric=metric, value=float(values.mean()), chance=null)
            for layer, value in zip(layers, values, strict=True):
                yield Row(metric=metric, value=float(value), layer=layer, chance=null)

    def _by_language(
        self, sample: TokenSample, folds: Sequence[Fold], layers: Sequence[int], predicted: np.ndarray
    ) -> Iterator[Row]:
        """Recall of every language and confusion, per layer and over layers."""
        size = len(sample.languages)
        matrix = np.zeros((len(layers), size, size))
        for number, fold in enumerate(folds):
            for index in range(len(layers)):
                np.add.at(matrix[index], (sample.language[fold.test], predicted[index, number, fold.test]), 1)
        matrix /= matrix.sum(axis=2, keepdims=True)
        shown = [-1, layers[-1] // 2, layers[-1]] if self.confusion_layers is None else self.confusion_layers
        for layer, shares in zip([*layers, None], [*matrix, matrix.mean(axis=0)], strict=True):
            for i, language in enumerate(sample.languages):
                yield Row(metric="recall", value=float(shares[i, i]), layer=layer, language=language, chance=1 / size)
                for j, other in enumerate(sample.languages):
                    if layer is None or layer in shown:
                        yield Row(
                            metric="confusion",
                            value=float(shares[i, j]),
                            layer=layer,
                            language=language,
                            other_language=other,
                            chance=1 / size,
                        )
