"""How well each layer knows the language of a token: logistic regression on hidden states, beside its controls.

The probe of Riemenschneider & Frank (ACL 2025, section 4): one classifier per layer on sampled token states, several
seeds, which draw their own tokens. Every accuracy comes with what it has to be compared to:

- majority: the share of the largest class (classes are balanced, so 1 / languages);
- shuffled: the same probe trained on permuted labels;
- token identity: the language in which the token is most frequent, counted on the training text; what is above it in
  the embedding layer is what a probe makes of similar tokens, what is above the embedding layer is context;
- control task: a random language for every token type (Hewitt & Liang, EMNLP 2019); selectivity is the difference;
- the untrained network: the step-0 rows of the same run.

The information that a layer gives about the language is that of the same probe: V-information (Xu et al., ICLR 2020),
I = H(language) - H(language | state) in bits, by the held-out log loss.

Folds are disjoint in sentences, and a key (a sentence and its translations) lies in the same fold in all languages.

Shapes:  Y layers   N tokens of all seeds   n of one   S seeds   P problems (the seed's, then controls)   L languages
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from analysis.base import Attachment, Kept, Row
from analysis.cost import Shape
from analysis.extraction.sites import find_sites
from analysis.extraction.states import TokenSample
from analysis.measures.text_analysis import TokenProbe, shown_layers, vocabulary
from analysis.probes.dip import MINIMUM_BLOCKS, count_dip, measure_dip
from analysis.probes.folds import Fold, control_labels, count_tokens, shared_tokens, token_identity_accuracy
from analysis.probes.logistic import fit_logistic
from analysis.probes.scores import score_rows, spread_row
from analysis.snapshots import Snapshot
from analysis.statistics import mean_interval
from analysis.texts import shared_texts

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class LanguageProbe(TokenProbe):
    """Accuracy of a language classifier on the token states of every layer, embeddings (layer -1) included.

    Rows, per layer and (without layer) as the mean over layers: `accuracy` (mean over seeds with a bootstrap interval
    over keys; also per seed), `accuracy_shared` (on tokens that occur in two languages or more), `information` (bits,
    at most log2 of the number of languages), `accuracy_shuffled`, `accuracy_control`, `selectivity`, `recall` per
    language, `confusion` (share of `language` taken for `other_language`; on some layers); without layer only
    `accuracy_majority`, `accuracy_token_identity`, `middle_dip` (see `analysis.probes.dip`, on shared tokens) and
    `spread` (largest minus smallest accuracy of a layer).

    Attachment `dip`: right answers on shared tokens by sentence key, from which `middle_dip` of two steps compares.

    Raises (when measuring):
        FileNotFoundError, ValueError: see `TokenProbe.draw` and `shown_layers`.
    """

    train_split: str = "train"
    """Split on which tokens are counted for the token identity baseline."""
    regularisation: float = 1.0
    """scikit-learn's C: smaller is stronger."""
    controls: bool = True
    """Fit the shuffled-label and control-task probes (for the first seed)."""
    shuffles: int = 5
    """Permutations of the labels for `accuracy_shuffled`."""
    confusion_layers: list[int] | None = None
    """Layers for which the confusion matrix is given; None means embeddings, middle and last."""

    default_name: ClassVar[str] = "language_probe"
    headlines: ClassVar[tuple[str, ...]] = ("accuracy", "middle_dip", "accuracy_shared")
    version: ClassVar[int] = 2
    positive: ClassVar[tuple[str, ...]] = (*TokenProbe.positive, "shuffles")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.regularisation <= 0:
            raise ValueError(f"{self.name}: regularisation={self.regularisation} must be positive")
        self._counts = Kept()

    def measure(self, snapshot: Snapshot) -> Iterator[Row | Attachment]:
        sample, folds = self.draw(snapshot)
        controls = self._controls(sample, folds[0]) if self.controls else np.empty((0, len(sample)), dtype=np.int64)
        sites = find_sites(snapshot.model, "hidden")
        layers, shown = [site.layer for site in sites], shown_layers(self.confusion_layers, sites)
        predicted = np.zeros((len(layers), len(folds), len(sample)), dtype=np.int64)  # (Y, S, N), a fold's rows only
        surprise = np.zeros(predicted.shape)  # bits for the true language
        by_controls = np.zeros((len(layers), len(controls), len(sample)), dtype=np.int64)
        for index, (_, values) in enumerate(self.states(snapshot)):
            for number, fold in enumerate(folds):
                labels = np.stack([sample.language, *(controls if number == 0 else ())])[:, fold.rows]  # (P, n)
                train = torch.from_numpy(fold.train[fold.rows]).expand(len(labels), -1)
                fit = fit_logistic(
                    values[fold.rows],
                    torch.from_numpy(labels),
                    train,
                    len(sample.languages),
                    inverse_penalty=self.regularisation,
                )
                found = fit.predictions().cpu().numpy()
                predicted[index, number, fold.rows] = found[0]
                surprise[index, number, fold.rows] = fit.surprise(torch.from_numpy(labels[0]))[0].cpu().numpy()
                if number == 0:
                    by_controls[index, :, fold.rows] = found[1:]
        test = np.stack([fold.test for fold in folds])  # (S, N)
        yield from self._accuracies(sample, layers, predicted == sample.language, test)
        gained = np.log2(len(sample.languages)) - surprise
        yield from score_rows("information", gained, test, sample, layers, 0.0)
        yield from self._baselines(snapshot, sample, folds)
        if self.controls:
            yield from self._control_rows(sample, layers, folds[0], predicted[:, 0], by_controls, controls)
        yield from self._by_language(sample, folds, layers, predicted, shown)

    def work(self, shape: Shape) -> float:
        languages, tokens = self.read_tokens(shape)
        # Permuted labels have nothing to find, a label for each type of token little.
        iterations = 38 * len(self.seeds) + ((5 * self.shuffles + 20) if self.controls else 0)
        rows = languages * self.tokens_per_language
        fits = shape.probe(rows, languages, iterations) + (len(self.seeds) - 1) * shape.probe(rows, languages, 0)
        return tokens * shape.read + (shape.layers + 1) * fits

    def _controls(self, sample: TokenSample, fold: Fold) -> np.ndarray:
        """Labels (shuffles + 1, N) of the control probes: permuted languages, last a language for every token type."""
        generator = np.random.default_rng(fold.seed)
        shuffled = np.tile(sample.language, (self.shuffles, 1))
        for labels in shuffled:
            labels[fold.train] = generator.permutation(labels[fold.train])
        return np.stack([*shuffled, control_labels(sample, fold.seed)])

    def _accuracies(
        self, sample: TokenSample, layers: Sequence[int], correct: np.ndarray, test: np.ndarray
    ) -> Iterator[Row | Attachment]:
        """From right answers (Y, S, N)."""
        yield from score_rows("accuracy", correct, test, sample, layers, 1 / len(sample.languages), self.seeds)
        yield spread_row(correct, test, sample)
        shared = test & shared_tokens(sample)
        if not shared.any(axis=1).all():
            logger.info("%s: no test token is shared by two languages, so no accuracy_shared", self.name)
            return
        largest = float(np.mean([np.bincount(sample.language[row]).max() / row.sum() for row in shared]))
        yield from score_rows("accuracy_shared", correct, shared, sample, layers, largest)
        if len(layers) > MINIMUM_BLOCKS:
            counts = count_dip(correct, shared, sample)
            dip = measure_dip(counts)
            yield Row(metric="middle_dip", value=dip.value, chance=0.0, low=dip.low, high=dip.high)
            yield Attachment("dip", counts.to_arrow())

    def _baselines(self, snapshot: Snapshot, sample: TokenSample, folds: Sequence[Fold]) -> Iterator[Row]:
        chance = 1 / len(sample.languages)
        yield Row(metric="accuracy_majority", value=chance, chance=chance)
        counts = self._counts.get(self._depends_on(snapshot), lambda: self._count_tokens(snapshot, sample, folds))
        if counts:
            found = [token_identity_accuracy(known, sample, fold) for known, fold in zip(counts, folds, strict=True)]
            yield Row(metric="accuracy_token_identity", value=float(np.mean(found)), chance=chance)

    def _count_tokens(self, snapshot: Snapshot, sample: TokenSample, folds: Sequence[Fold]) -> list[np.ndarray]:
        """Tokens of the training split by language, for each fold without its own test texts if they are of that split;
        empty if the file has no such split.
        """
        try:
            texts = shared_texts(self.texts, list(self.read(snapshot)), [self.train_split], snapshot.clones)
        except ValueError as error:
            logger.warning("%s: no accuracy_token_identity: %s", self.name, error)
            return []
        size = vocabulary(snapshot)
        counts = count_tokens(snapshot.tokenizer, texts, size)
        if self.train_split not in self.splits:
            return [counts] * len(folds)
        found = []
        for fold in folds:
            keys = {sample.key_names[key] for key in np.unique(sample.key[fold.test])}
            tested = {language: [text for text in own if text.key in keys] for language, own in texts.items()}
            found.append(counts - count_tokens(snapshot.tokenizer, tested, size))
        return found

    def _control_rows(
        self,
        sample: TokenSample,
        layers: Sequence[int],
        fold: Fold,
        predicted: np.ndarray,
        by_controls: np.ndarray,
        controls: np.ndarray,
    ) -> Iterator[Row]:
        """Shuffled labels, control task and selectivity, all on the first seed's tokens."""
        test = fold.test
        shuffled = (by_controls[:, :-1] == sample.language)[:, :, test].mean(axis=2)  # (Y, shuffles)
        for layer, values in zip([*layers, None], [*shuffled, shuffled.mean(axis=0)], strict=True):
            # Over permutations, which differ more than the test tokens' own error: one alone may look like a deficit.
            low, high = mean_interval(values)
            value, null = float(values.mean()), 1 / len(sample.languages)
            yield Row(metric="accuracy_shuffled", value=value, layer=layer, chance=null, low=low, high=high)
        own = (predicted == sample.language)[:, test].mean(axis=1)  # (Y,)
        control = (by_controls[:, -1] == controls[-1])[:, test].mean(axis=1)
        frequent = float(np.bincount(controls[-1][test]).max() / test.sum())
        for metric, values, null in (("accuracy_control", control, frequent), ("selectivity", own - control, 0.0)):
            yield Row(metric=metric, value=float(values.mean()), chance=null)
            for layer, value in zip(layers, values, strict=True):
                yield Row(metric=metric, value=float(value), layer=layer, chance=null)

    @staticmethod
    def _by_language(
        sample: TokenSample, folds: Sequence[Fold], layers: Sequence[int], predicted: np.ndarray, shown: Sequence[int]
    ) -> Iterator[Row]:
        """Recall of every language and confusion (of the `shown` layers), per layer and over layers."""
        size = len(sample.languages)
        matrix = np.zeros((len(layers), size, size))
        for number, fold in enumerate(folds):
            for index in range(len(layers)):
                np.add.at(matrix[index], (sample.language[fold.test], predicted[index, number, fold.test]), 1)
        matrix /= matrix.sum(axis=2, keepdims=True)
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
