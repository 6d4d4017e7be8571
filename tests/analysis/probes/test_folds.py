"""Folds are disjoint in sentences and balanced; the token baselines against counting by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from transformers import PreTrainedModel

from analysis.extraction.states import sample_tokens
from analysis.probes.folds import cluster_intervals, make_folds, shared_tokens, token_identity_accuracy
from analysis.texts import Text

LOWER, UPPER = "abcdefghij", "KLMNOPQRST"


def _texts(alphabets: dict[str, str], count: int = 60) -> dict[str, list[Text]]:
    """Random words over an alphabet per language, with the same keys in all of them."""
    generator = np.random.default_rng(0)
    return {
        language: [Text(f"k{number}", "".join(generator.choice(list(alphabet), 24))) for number in range(count)]
        for language, alphabet in alphabets.items()
    }


def test_folds_share_no_key_and_are_balanced(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable) -> None:
    texts = _texts({"aa": LOWER, "bb": UPPER})
    texts["bb"] = texts["bb"][:40]  # a smaller language
    sample = sample_tokens(tiny_snapshot(tiny_xglm), texts, 10**6)
    folds = make_folds(sample, [0, 1], 400, 100)
    assert not np.array_equal(folds[0].test, folds[1].test)
    for fold in folds:
        assert not set(sample.key[fold.train]) & set(sample.key[fold.test])
        for mask in (fold.train, fold.test):
            aa, bb = np.bincount(sample.language[mask])
            assert aa == bb > 0


def test_token_identity_counts_ties_in_parts(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable) -> None:
    texts = _texts({"aa": LOWER, "bb": UPPER, "cc": LOWER}, count=30)
    sample = sample_tokens(tiny_snapshot(tiny_xglm), texts, 200)
    (fold,) = make_folds(sample, [0], 100, 50)
    expected = []
    for token, language in zip(sample.token[fold.test], sample.language[fold.test], strict=True):
        counts = [int(((sample.token == token) & fold.train & (sample.language == other)).sum()) for other in range(3)]
        best = [other for other in range(3) if counts[other] == max(counts)]
        expected.append((language in best) / len(best))
    assert token_identity_accuracy(sample, fold) == pytest.approx(np.mean(expected))
    assert set(sample.language[shared_tokens(sample)]) == {0, 2}


def test_interval_widens_when_clusters_vary() -> None:
    totals = np.full((1, 50), 10.0)
    even = np.full((1, 50), 7.0)
    uneven = np.where(np.arange(50) < 35, 10.0, 0.0)[None]
    assert np.allclose(cluster_intervals(even, totals), 0.7)
    low, high = cluster_intervals(uneven, totals)
    # Normal approximation: 0.7 +- 1.96 sqrt(0.21 / 50) = [0.573, 0.827].
    assert low == pytest.approx(0.573, abs=0.03)
    assert high == pytest.approx(0.827, abs=0.03)
