"""Training and test tokens for probes, disjoint in sentences, and what a token's identity alone gives away.

A key (a sentence and all its translations) lies on one side in every language, so that a probe can neither remember a
sentence nor see its translation.

Shapes:  N sampled tokens   S seeds   L languages   V vocabulary   G keys   R bootstrap draws
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from analysis.extraction.encoding import encode_texts
from analysis.extraction.states import TokenSample, merge_samples, unit_hash
from analysis.statistics import draw_again
from analysis.texts import Text

_TEXTS_AT_ONCE = 1000
MINIMUM_TOKENS = 10
"""Fewer training or test tokens per language than this are refused: no accuracy could be read off them."""


@dataclass(frozen=True)
class Fold:
    """One draw of tokens, divided into training and test tokens, balanced over languages."""

    seed: int
    rows: slice
    """The draw's own tokens among those of all draws."""
    train: np.ndarray
    """(N,) bool."""
    test: np.ndarray
    """(N,) bool; its keys do not occur in `train`."""


def make_folds(
    samples: Sequence[TokenSample], seeds: Sequence[int], train_tokens: int, test_tokens: int
) -> tuple[TokenSample, list[Fold]]:
    """One token sample a seed to all of them together and the division of each.

    For each seed a random share of the keys is for testing; then every language gives equally many tokens. A language
    that cannot fill `train_tokens` or `test_tokens` lowers the number for all of them.

    Raises:
        ValueError: a language would be left with fewer than `MINIMUM_TOKENS` on either side.
    """
    merged, places = merge_samples(samples)
    folds = []
    for seed, rows, sample in zip(seeds, places, samples, strict=True):
        num_test = max(1, round(len(sample.key_names) * test_tokens / (train_tokens + test_tokens)))
        priority = np.array([unit_hash("token", *pair) for pair in zip(sample.text, sample.position, strict=True)])
        draws = np.array([unit_hash("fold", seed, key) for key in sample.key_names])
        is_test = np.zeros(len(draws), dtype=bool)
        is_test[np.argsort(draws)[:num_test]] = True
        in_test = is_test[sample.key]
        train, test = np.zeros((2, len(merged)), dtype=bool)
        train[rows] = _balanced(sample, ~in_test, train_tokens, priority)
        test[rows] = _balanced(sample, in_test, test_tokens, priority)
        for side, mask in (("training", train), ("test", test)):
            if mask.sum() < MINIMUM_TOKENS * len(sample.languages):
                counts = np.bincount(sample.language[in_test == (side == "test")], minlength=len(sample.languages))
                scarce = int(counts.argmin())
                raise ValueError(
                    f"language probe: {sample.languages[scarce]!r} has only {counts[scarce]} {side} tokens, at least "
                    f"{MINIMUM_TOKENS} are needed; give it more texts or leave it out of 'languages'"
                )
        folds.append(Fold(seed, rows, train, test))
    return merged, folds


def _balanced(sample: TokenSample, eligible: np.ndarray, wanted: int, priority: np.ndarray) -> np.ndarray:
    """Up to `wanted` eligible tokens of each language, as many in each as in the scarcest."""
    counts = np.bincount(sample.language[eligible], minlength=len(sample.languages))
    number = min(wanted, int(counts.min()))
    chosen = np.zeros(len(sample), dtype=bool)
    for language in range(len(sample.languages)):
        members = np.flatnonzero(eligible & (sample.language == language))
        chosen[members[np.argsort(priority[members], kind="stable")[:number]]] = True
    return chosen


def count_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, Sequence[Text]], vocabulary: int
) -> np.ndarray:
    """How often each token occurs in the texts of each language, (V, L), special tokens aside."""
    counts = np.zeros((vocabulary, len(texts)), dtype=np.int64)
    for number, entries in enumerate(texts.values()):
        for start in range(0, len(entries), _TEXTS_AT_ONCE):
            encoded = encode_texts(tokenizer, [entry.text for entry in entries[start : start + _TEXTS_AT_ONCE]])
            ids, flags = np.concatenate(encoded.ids), np.concatenate(encoded.content)
            counts[:, number] += np.bincount(ids[flags], minlength=vocabulary)
    return counts


def token_identity_accuracy(counts: np.ndarray, sample: TokenSample, fold: Fold) -> float:
    """Test accuracy of the language in which a token is most frequent by `counts` (V, L); ties count in parts.

    Frequencies are relative to the language's own text: test tokens are balanced over languages, texts are not.
    """
    frequency = counts / np.maximum(counts.sum(axis=0), 1)
    seen = frequency[sample.token[fold.test]]  # (test, L); unseen tokens are ties between all languages
    best = seen == seen.max(axis=1, keepdims=True)
    hit = best[np.arange(len(seen)), sample.language[fold.test]]
    return float((hit / best.sum(axis=1)).mean())


def control_labels(sample: TokenSample, seed: int) -> np.ndarray:
    """(N,) a random language for every token type: the control task of Hewitt & Liang (EMNLP 2019)."""
    types, inverse = np.unique(sample.token, return_inverse=True)
    draws = np.array([unit_hash("control", seed, token) for token in types])
    labels: np.ndarray = (draws * len(sample.languages)).astype(np.int64)[inverse]
    return labels


def shared_tokens(sample: TokenSample) -> np.ndarray:
    """(N,) bool: tokens whose id occurs in at least two languages of the sample."""
    pairs = np.unique(np.stack([sample.token, sample.language]), axis=1)
    num_languages = np.bincount(pairs[0], minlength=int(sample.token.max()) + 1)
    shared: np.ndarray = num_languages[sample.token] >= 2
    return shared


def cluster_draws(hits: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Bootstrap draws (..., R) of mean_s(sum_g hits / sum_g totals) when whole clusters g are drawn again.

    Args:
        hits, totals: (..., S, G) and (S, G): correct answers and all answers per seed and key.
    """
    num_clusters = totals.shape[-1]
    drawn = draw_again(num_clusters)
    ratio = (hits @ drawn.T) / np.maximum(totals @ drawn.T, 1)  # (..., S, R)
    draws: np.ndarray = ratio.mean(axis=-2)
    return draws
