"""Compiled order statistics equal NumPy's, SciPy's and scikit-learn's, ties and signed zeros included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from analysis.experts.ranks import auroc, average_ranks, percentile, sorted_keys


def make_values(num_units: int = 30, num_texts: int = 150) -> np.ndarray:
    """Continuous units, units with many zeros of both signs, units of few distinct values, and a constant one."""
    values = np.random.default_rng(0).normal(size=(num_units, num_texts)).astype(np.float32)
    values[5:15] = np.maximum(values[5:15], 0)
    values[7, ::3] *= -1.0  # -0.0 must tie with 0.0
    values[15:25] = np.round(values[15:25])
    values[25] = 0.25
    values[26] *= 1e30
    return values


@pytest.mark.parametrize("num_texts", [1, 2, 150, 1400])
def test_keys_are_in_descending_order_of_value_then_in_order_of_place(num_texts: int) -> None:
    values = make_values(num_texts=num_texts)
    columns = np.arange(num_texts)[::-1][: max(1, num_texts - 1)].copy()
    places = (sorted_keys(values, columns) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    expected = np.argsort(-values[:, columns], axis=1, kind="stable")
    assert np.array_equal(places, expected)


@pytest.mark.parametrize("num_texts", [1, 150, 1400])
def test_ranks_equal_scipy_from_the_largest_on(num_texts: int) -> None:
    values = make_values(num_texts=num_texts)
    assert np.array_equal(average_ranks(values), rankdata(-values, axis=1))


def test_percentiles_equal_numpy() -> None:
    values, texts = make_values(), np.array([5, 3, 77, 20, 21, 0, 9])
    for chosen in (texts, texts[:1]):
        expected = np.percentile(values[:, chosen], [50, 90], axis=1).astype(np.float32)
        found = [percentile(np.sort(values[:, chosen]), share) for share in (0.5, 0.9)]
        assert np.array_equal(found, expected)


def test_auroc_equals_scikit_learn_with_ties() -> None:
    values, order = make_values(), np.random.default_rng(1).permutation(150)
    yes, no = order[:20], order[20:120]

    def area(rows: np.ndarray) -> np.ndarray:
        return auroc(np.sort(rows[:, yes]), np.sort(rows[:, no]))

    expected = [roc_auc_score(np.arange(120) < 20, row[order[:120]]) for row in values]
    assert np.abs(area(values) - expected).max() < 1e-6
    assert area(np.zeros((2, 150), dtype=np.float32)).tolist() == [0.5, 0.5]
    label = np.zeros(150, dtype=np.float32)
    label[yes] = 1.0
    assert area(np.stack([label, -label])).tolist() == [1.0, 0.0]
