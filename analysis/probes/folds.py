"""Training and test tokens for probes, disjoint in sentences, and what a token's identity alone gives away.

A key (a sentence and all its translations) lies on one side in every language, so that a probe can neither remember a
sentence nor see its translation.

Shapes:  N sampled tokens   S seeds   L languages   G keys   R bootstrap draws
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.extraction.states import TokenSample, unit_hash

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
    shared: np.ndarray = num_languages[sample.token] >= 2
    return shared


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
