"""How well each layer knows the language of a token: logistic regression on hidden states, beside its controls.

The probe of Riemenschneider & Frank (ACL 2025, section 4): one classifier per layer on sampled token states, several
seeds. Every accuracy comes with what it has to be compared to:

- majority: the share of the largest class (classes are balanced, so 1 / languages);
- shuffled: the same probe trained on permuted labels;
- token identity: a unigram classifier that sees only which token it is, as the embedding layer can;
- control task: a random language for every token type (Hewitt & Liang, EMNLP 2019); selectivity is the difference;
- the untrained network: the step-0 rows of the same run.

Folds are disjoint in sentences, and a key (a sentence and its translations) lies in the same fold in all languages.

Shapes:  N sampled tokens   S seeds   P problems (seeds, then controls)   L languages   G keys   R bootstrap draws
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from analysis.base import Analysis, Row
from analysis.hidden_states import TokenSample, iter_token_states, sample_tokens, unit_hash
from analysis.logistic import fit_logistic
from analysis.sites import find_sites
from analysis.snapshots import Snapshot
from analysis.texts import Text, read_texts

logger = logging.getLogger(__name__)

BOOTSTRAP_DRAWS = 1000
MINIMUM_TOKENS = 10
"""Fewer training or test tokens per language than this are refused: no accuracy could be read off them."""


@dataclass(frozen=True)
class Fold:
    """One division of a token sample into training and test tokens, balanced over languages."""

    seed: int
    train: np.ndarray
    """(N,) bool."""
    test: np.ndarray
    """(N,) bool; its keys do not occur in `train`."""


def make_folds(sample: TokenSample, seeds: Sequence[int], train_tokens: int, test_tokens: int) -> list[Fold]:
    """For each seed, a random share of the keys is for testing; then every language gives equally many tokens.

    A language that cannot fill `train_tokens` or `test_tokens` lowers the number for all of them.

    Raises:
        ValueError: a language would be left with fewer than `MINIMUM_TOKENS` on either side.
    """
    folds = []
    num_test = max(1, round(len(sample.key_names) * test_tokens / (train_tokens + test_tokens)))
    priority = np.array([unit_hash("token", *pair) for pair in zip(sample.text, sample.position, strict=True)])
    for seed in seeds:
        draws = np.array([unit_hash("fold", seed, key) for key in sample.key_names])
        is_test = np.zeros(len(draws), dtype=bool)
        is_test[np.argsort(draws)[:num_test]] = True
        in_test = is_test[sample.key]
        train = _balanced(sample, ~in_test, train_tokens, priority)
        test = _balanced(sample, in_test, test_tokens, priority)
        for side, mask in (("training", train), ("test", test)):
            if mask.sum() < MINIMUM_TOKENS * len(sample.languages):
                counts = np.bincount(sample.language[in_test == (side == "test")], minlength=len(sample.languages))
                scarce = int(counts.argmin())
                raise ValueError(
                    f"language probe: {sample.languages[scarce]!r} has only {counts[scarce]} {side} tokens, at least "
                    f"{MINIMUM_TOKENS} are needed; give it more texts or leave it out of 'languages'"
                )
        folds.append(Fold(seed, train, test))
    return folds


def _balanced(sample: TokenSample, eligible: np.ndarray, wanted: int, priority: np.ndarray) -> np.ndarray:
    """Up to `wanted` eligible tokens of each language, as many in each as in the scarcest."""
    counts = np.bincount(sample.language[eligible], minlength=len(sample.languages))
    number = min(wanted, int(counts.min()))
    chosen = np.zeros(len(sample), dtype=bool)
    for language in range(len(sample.languages)):
        members = np.flatnonzero(eligible & (sample.language == language))
        chosen[members[np.argsort(priority[members], kind="stable")[:number]]] = True
    return chosen


def token_identity_accuracy(sample: TokenSample, fold: Fold) -> float:
    """Test accuracy of the language that a token's id was most frequent in during training; ties count in parts."""
    size = int(sample.token.max()) + 1
    counts = np.zeros((size, len(sample.languages)), dtype=np.int64)
    np.add.at(counts, (sample.token[fold.train], sample.language[fold.train]), 1)
    seen = counts[sample.token[fold.test]]  # (test, L); unseen tokens are ties between all languages
    best = seen == seen.max(axis=1, keepdims=True)
    hit = best[np.arange(len(seen)), sample.language[fold.test]]
    return float((hit / best.sum(axis=1)).mean())


def shared_tokens(sample: TokenSample) -> np.ndarray:
    """(N,) bool: tokens whose id occurs in at least two languages of the sample."""
    pairs = np.unique(np.stack([sample.token, sample.language]), axis=1)
    num_languages = np.bincount(pairs[0], minlength=int(sample.token.max()) + 1)
    return num_languages[sample.token] >= 2


def cluster_intervals(hits: np.ndarray, totals: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap bounds of mean_s(sum_g hits / sum_g totals) when whole clusters g are drawn again.

    Args:
        hits, totals: (..., S, G) and (S, G): correct answers and all answers per seed and key.

    Returns low and high, (...,).
    """
    num_clusters = totals.shape[-1]
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=BOOTSTRAP_DRAWS)
    ratio = (hits @ drawn.T) / np.maximum(totals @ drawn.T, 1)  # (..., S, R)
    low, high = np.quantile(ratio.mean(axis=-2), [0.025, 0.975], axis=-1)
    return low, high


@dataclass(kw_only=True)
class LanguageProbe(Analysis):
    """Accuracy of a language classifier on the token states of every layer, embeddings (layer -1) included.

    Rows, per layer unless said otherwise: `accuracy` (mean over seeds with a bootstrap interval over keys, and one row
    per seed), `accuracy_shared` (on tokens that occur in two languages or more), `accuracy_shuffled`,
    `accuracy_control`, `selectivity`, `recall` per language, `confusion` (share of `language` taken for
    `other_language`, on some layers); without layer `accuracy_majority` and `accuracy_token_identity`.

    Raises (when measuring):
        FileNotFoundError, ValueError: see `read_texts` and `make_folds`.
    """

    texts: str
    """Texts by language, parquet or JSONL (see `analysis.texts`)."""
    splits: list[str] = field(default_factory=lambda: ["valid", "test"])
    """Splits to draw from: text that the model did not train on."""
    languages: list[str] = field(default_factory=list)
    """ISO 639-1 codes; empty means all languages of the file."""
    tokens_per_language: int = 1000
    """Training tokens of each language."""
    test_tokens_per_language: int = 500
    """Test tokens of each language."""
    tokens_per_text: int = 16
    """Tokens drawn from one text at most: more texts make more independent observations."""
    max_length: int = 128
    """Tokens after which a text is cut."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """One probe per seed, each with its own division of the sentences."""
    regularisation: float = 1.0
    """scikit-learn's C: smaller is stronger."""
    controls: bool = True
    """Fit the shuffled-label and control-task probes (for the first seed)."""
    confusion_layers: list[int] | None = None
    """Layers for which the confusion matrix is given; None means embeddings, middle and last."""
    batch_tokens: int = 4096
    """Tokens per forward pass."""
    max_bytes: int = 2**30
    """Bound on the token states held at once."""

    default_name: ClassVar[str] = "language_probe"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tokens_per_language", "test_tokens_per_language", "tokens_per_text", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.name}: {name}={getattr(self, name)} must be at least 1")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"{self.name}: seeds={self.seeds} must be different numbers, at least one")
        if self.regularisation <= 0:
            raise ValueError(f"{self.name}: regularisation={self.regularisation} must be positive")
        if len(self.languages) == 1:
            raise ValueError(f"{self.name}: one language ({self.languages[0]!r}) cannot be told apart; name two")
        self._loaded: dict[str, list[Text]] | None = None

    def sample(self, snapshot: Snapshot) -> TokenSample:
        """The tokens of this analysis; a quarter more than needed, so that every fold can be balanced."""
        if self._loaded is None:
            self._loaded = read_texts(self.texts, languages=self.languages, splits=self.splits)
        if len(self._loaded) < 2:
            raise ValueError(f"{self.name}: {self.texts} has texts in {', '.join(self._loaded)} only; two are needed")
        return sample_tokens(
            snapshot,
            self._loaded,
            int(1.25 * (self.tokens_per_language + self.test_tokens_per_language)),
            tokens_per_text=self.tokens_per_text,
            max_length=self.max_length,
        )

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        sample = self.sample(snapshot)
        folds = make_folds(sample, self.seeds, self.tokens_per_language, self.test_tokens_per_language)
        if int(folds[0].train.sum()) < self.tokens_per_language * len(sample.languages):
            logger.info(
                "%s: %d training tokens per language (asked for %d)",
                self.name,
                int(folds[0].train.sum()) // len(sample.languages),
                self.tokens_per_language,
            )
        sites = find_sites(snapshot.model, "hidden")
        yield from self._token_baselines(sample, folds)
        labels, train = self._problems(sample, folds)
        correct = []
        for site, states in iter_token_states(
            snapshot, sample, sites, batch_tokens=self.batch_tokens, max_bytes=self.max_bytes
        ):
            fit = fit_logistic(
                states,
                torch.from_numpy(labels),
                torch.from_numpy(train),
                len(sample.languages),
                inverse_penalty=self.regularisation,
            )
            predicted = fit.predictions().cpu().numpy()  # (P, N)
            correct.append(predicted[: len(folds)] == sample.language)
            yield from self._layer_rows(sample, folds, site.layer, site.kind, predicted, labels)
            if site.layer in self._confusion_layers(len(sites) - 2):
                yield from self._confusion(sample, folds, site.layer, site.kind, predicted)
        yield from self._accuracies(sample, folds, [(s.layer, s.kind) for s in sites], np.stack(correct))

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

    def _token_baselines(self, sample: TokenSample, folds: Sequence[Fold]) -> Iterator[Row]:
        chance = 1 / len(sample.languages)
        yield Row(metric="accuracy_majority", value=chance, chance=chance)
        identity = [token_identity_accuracy(sample, fold) for fold in folds]
        yield Row(metric="accuracy_token_identity", value=float(np.mean(identity)), chance=chance)

    def _accuracies(
        self, sample: TokenSample, folds: Sequence[Fold], sites: Sequence[tuple[int, str]], correct: np.ndarray
    ) -> Iterator[Row]:
        """Accuracy of all layers, `correct` (layers, S, N), with intervals from one bootstrap over keys."""
        num_keys = len(sample.key_names)
        test = np.stack([fold.test for fold in folds])
        groups = {"accuracy": test, "accuracy_shared": test & shared_tokens(sample)}
        for metric, mask in groups.items():
            if not mask.any(axis=1).all():
                logger.info("%s: a test fold holds no token that two languages share, no %s", self.name, metric)
                continue
            keyed = np.zeros((len(sample), num_keys))
            keyed[np.arange(len(sample)), sample.key] = 1
            totals = mask @ keyed  # (S, G)
            hits = (correct & mask) @ keyed  # (layers, S, G)
            low, high = cluster_intervals(hits, totals)
            value = (hits.sum(axis=-1) / totals.sum(axis=-1)).mean(axis=-1)
            largest = [np.bincount(sample.language[row]).max() / row.sum() for row in mask]
            for index, (layer, kind) in enumerate(sites):
                yield Row(
                    metric=metric,
                    value=float(value[index]),
                    layer=layer,
                    kind=kind,
                    chance=float(np.mean(largest)),
                    low=float(low[index]),
                    high=float(high[index]),
                )

    def _layer_rows(
        self,
        sample: TokenSample,
        folds: Sequence[Fold],
        layer: int,
        kind: str,
        predicted: np.ndarray,
        labels: np.ndarray,
    ) -> Iterator[Row]:
        chance = 1 / len(sample.languages)
        by_seed = [float((p == sample.language)[f.test].mean()) for p, f in zip(predicted, folds, strict=False)]
        for fold, accuracy in zip(folds, by_seed, strict=True):
            yield Row(metric="accuracy", value=accuracy, layer=layer, kind=kind, seed=fold.seed, chance=chance)
        if self.controls:
            test = folds[0].test
            shuffled = float((predicted[-2] == sample.language)[test].mean())
            control = float((predicted[-1] == labels[-1])[test].mean())
            yield Row(metric="accuracy_shuffled", value=shuffled, layer=layer, kind=kind, chance=chance)
            frequent = float(np.bincount(labels[-1][test]).max() / test.sum())
            yield Row(metric="accuracy_control", value=control, layer=layer, kind=kind, chance=frequent)
            yield Row(metric="selectivity", value=by_seed[0] - control, layer=layer, kind=kind, chance=0.0)
        for number, language in enumerate(sample.languages):
            recall = [
                float((p[f.test & (sample.language == number)] == number).mean())
                for p, f in zip(predicted, folds, strict=False)
            ]
            yield Row(
                metric="recall", value=float(np.mean(recall)), layer=layer, kind=kind, language=language, chance=chance
            )

    def _confusion_layers(self, last: int) -> list[int]:
        return [-1, last // 2, last] if self.confusion_layers is None else self.confusion_layers

    def _confusion(
        self, sample: TokenSample, folds: Sequence[Fold], layer: int, kind: str, predicted: np.ndarray
    ) -> Iterator[Row]:
        size = len(sample.languages)
        matrix = np.zeros((size, size))
        for guess, fold in zip(predicted, folds, strict=False):
            np.add.at(matrix, (sample.language[fold.test], guess[fold.test]), 1)
        matrix /= matrix.sum(axis=1, keepdims=True)
        for i, language in enumerate(sample.languages):
            for j, other in enumerate(sample.languages):
                yield Row(
                    metric="confusion",
                    value=float(matrix[i, j]),
                    layer=layer,
                    kind=kind,
                    language=language,
                    other_language=other,
                    chance=1 / size,
                )
