"""The smallest slope that a family of runs could have shown."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from analysis.report.capacity.page import detectable_slope


def test_the_smallest_visible_slope_is_seen_in_four_of_five_draws() -> None:
    widths = np.repeat([32, 64, 128, 256], 5)
    x, rng, spread, found = np.log2(widths), np.random.default_rng(0), 0.004, []
    truth = (stats.t.ppf(0.975, 16) + stats.t.ppf(0.8, 16)) * spread / (x.var() * len(x)) ** 0.5
    for _ in range(600):
        rises = truth * x + rng.normal(0.0, spread, len(x))
        runs = [SimpleNamespace(width=int(width), rise=float(rise)) for width, rise in zip(widths, rises, strict=True)]
        slope = detectable_slope(runs)  # type: ignore[arg-type]
        assert slope is not None
        found.append((slope, stats.linregress(x, rises).pvalue < 0.05))
    assert np.median([slope for slope, _ in found]) == pytest.approx(truth, rel=0.05)
    assert np.mean([seen for _, seen in found]) == pytest.approx(0.8, abs=0.05)


def test_one_seed_a_width_tells_nothing_of_the_noise() -> None:
    runs = [SimpleNamespace(width=width, rise=0.01) for width in (32, 64, 128)]
    assert detectable_slope(runs) is None  # type: ignore[arg-type]
