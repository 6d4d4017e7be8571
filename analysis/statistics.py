"""Intervals and corrections that every measure shares.

Bootstrap over concepts or sentences (never over units, which are not a sample of anything), and the Benjamini-Hochberg
correction over a family of tests (steps x layers x pairs).

Shapes:  S resampled things (concepts, sentences)   M quantities
"""

from __future__ import annotations

import numpy as np
from scipy.stats import false_discovery_control


def bootstrap_interval(
    values: np.ndarray, *, num_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over the first axis (Efron 1979).

    Args:
        values: (S,) or (S, M); all M quantities are resampled together.
        num_resamples: draws of S out of S with replacement.

    Returns:
        Lower and upper bound, each () or (M,). One single thing gives an interval of no width.

    Raises:
        ValueError: no values, values that are not finite, or options out of range.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or values.shape[0] == 0:
        raise ValueError(f"bootstrap needs values (S,) or (S, M) with S > 0, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("bootstrap over values that are not finite")
    if num_resamples < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"num_resamples={num_resamples} must be at least 1, level={level} between 0 and 1")
    size = values.shape[0]
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1.0 / size), size=num_resamples) / size
    means = weights @ values
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0)
    return low, high


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values of one family of tests, same shape (Benjamini and Hochberg 1995).

    Rejecting where the result is at most q keeps the expected share of false rejections at most q, for independent or
    positively dependent tests.

    Raises:
        ValueError: a value outside [0, 1].
    """
    p = np.asarray(p, dtype=np.float64)
    if p.size == 0:
        return p.copy()
    if not ((p >= 0.0) & (p <= 1.0)).all():
        raise ValueError("p-values must lie between 0 and 1")
    return false_discovery_control(p, axis=None).reshape(p.shape)
