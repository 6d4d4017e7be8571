"""The code length by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from analysis.probes.online_code import FLOOR, online_code


def _states(rows: int = 600, width: int = 12, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    features = generator.normal(size=(rows, width)) + 0.8 * generator.normal(size=(classes, width))[labels]
    return features * np.exp(generator.normal(size=width)) + 3, labels


def test_compression_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = _states(rows=64, width=3, classes=2)
    features = torch.from_numpy(values)
    monkeypatch.setattr("analysis.probes.online_code.CODE_FRACTIONS", (0.25, 0.5, 1.0))
    expected = 16.0  # the first block: one bit a label
    for start, end in ((16, 32), (32, 64)):
        scaler = StandardScaler().fit(values[:start])
        model = LogisticRegression(tol=1e-10, max_iter=10_000).fit(scaler.transform(values[:start]), labels[:start])
        probability = model.predict_proba(scaler.transform(values[start:end]))[
            np.arange(end - start), labels[start:end]
        ]
        expected -= np.log2((1 - FLOOR) * probability + FLOOR / 2).sum()
    other = 1 - labels
    code, mirrored = online_code(features, torch.from_numpy(np.stack([labels, other])), 2)
    assert code == pytest.approx(64 / expected, rel=1e-3)
    assert mirrored == pytest.approx(code, rel=1e-3)


def test_labels_that_can_be_read_off_compress_and_others_do_not() -> None:
    labels = torch.arange(2000) % 4
    readable = torch.nn.functional.one_hot(labels, 4).float() + 0.1 * torch.randn(2000, 4)
    noise = torch.randn(2000, 4)
    assert online_code(readable, labels[None], 4)[0] > 10
    assert 0.85 < online_code(noise, labels[None], 4)[0] < 1.02


def test_a_class_that_comes_late_costs_few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.probes.online_code.CODE_FRACTIONS", (0.1, 0.5, 1.0))
    labels = torch.cat([torch.arange(100) % 2, torch.full((100,), 2)])
    (code,) = online_code(torch.randn(200, 3), labels[None], 3)
    assert 200 * math.log2(3) / code < 100 * math.log2(3 / FLOOR) + 400


def test_degenerate_input_is_named() -> None:
    features, labels = torch.ones(20, 3), torch.arange(20) % 2
    with pytest.raises(ValueError, match="at least two"):
        online_code(features[:1], labels[None, :1], 2)
