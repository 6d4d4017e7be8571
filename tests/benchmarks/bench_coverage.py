"""Do 95 % intervals cover the truth in 95 % of draws? The table that docs/measures.md quotes.

    python tests/benchmarks/bench_coverage.py [--draws 4000]

Means of 6, 12 and 40 concepts with normal, exponential (skewness 2) and lognormal (skewness 6) values; one network
against a band of five random ones; a mean over five training runs and the concepts; the onset of five runs, and the
difference of two onsets, with snapshots at powers of two.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from analysis.onsets import Onset, band_edges, find_onset, mean_onset, onset_difference  # noqa: E402
from analysis.statistics import against_band, bootstrap_interval, two_way_interval  # noqa: E402

SIZES = (6, 12, 40)
SHAPES = ("normal", "exponential", "lognormal")
TRUTH = {"normal": 0.0, "exponential": 1.0, "lognormal": float(np.exp(0.5))}


def draw(shape: str, size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values with mean 0."""
    values = {"normal": rng.normal, "exponential": rng.exponential, "lognormal": rng.lognormal}[shape](size=size)
    return values - TRUTH[shape]


def percentile(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The usual bootstrap, for comparison."""
    size = len(values)
    weights = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=1000) / size
    low, high = np.quantile(weights @ values, [0.025, 0.975], axis=0)
    return low, high


def covered(bounds: tuple[np.ndarray, np.ndarray]) -> float:
    """Per cent of intervals that hold 0."""
    return float(100 * ((bounds[0] <= 0.0) & (bounds[1] >= 0.0)).mean())


def mean_coverage(draws: int, seed: int = 0) -> dict[tuple[int, str], tuple[float, float]]:
    """(concepts, shape) to coverage of `bootstrap_interval` and of percentiles."""
    rng = np.random.default_rng(seed)
    found = {}
    for size in SIZES:
        for shape in SHAPES:
            values = draw(shape, (size, draws), rng)
            found[size, shape] = covered(bootstrap_interval(values)), covered(percentile(values))
    return found


def contrast_coverage(draws: int, seed: int = 0) -> dict[tuple[str, int, float], float]:
    """(which, concepts, spread between networks in units of that between concepts) to coverage."""
    rng = np.random.default_rng(seed)
    found = {}
    for size in SIZES:
        for spread in (0.0, 0.3, 1.0):
            inside = {"against_band": 0, "two_way_interval": 0}
            for _ in range(draws):
                concepts = rng.normal(size=size)
                networks = concepts + spread * rng.normal(size=(6, 1)) + rng.normal(size=(6, size))
                contrast = against_band(networks[0], networks[1:])
                inside["against_band"] += contrast.low <= 0.0 <= contrast.high
                contrast = two_way_interval(networks[1:])
                inside["two_way_interval"] += contrast.low <= 0.0 <= contrast.high
            for which, count in inside.items():
                found[which, size, spread] = 100 * count / draws
    return found


STEPS = (0, *(2**power for power in range(6, 15)), 20480)
ABRUPT = (0.4, 0.7, 1.0)
"""Width of a logistic rise in octaves: it takes 4.4 of them from a tenth to nine tenths."""


def onset_coverage(draws: int, seed: int = 0) -> dict[tuple[float, float, float], tuple[float, float]]:
    """(width of the rise, noise of a snapshot as a share of the rise, spread of runs in octaves) to coverage of
    `mean_onset` and `onset_difference`.

    Five runs rise around one middle, anywhere between steps 700 and 2,900; the second measure rises one octave later.
    The truth is where the curves without noise cross the edge of the band that five untrained networks gave.
    """
    rng = np.random.default_rng(seed)
    octaves = np.log2(STEPS[1:])

    def runs(middles: np.ndarray, width: float, noise: float, edge: float) -> list[Onset]:
        curves = 1 / (1 + np.exp((middles[:, None] - octaves) / width))
        curves = np.insert(curves, 0, 0.0, axis=1) + noise * rng.normal(size=(len(middles), len(STEPS)))
        return [find_onset(STEPS, curve.tolist(), edge) for curve in curves]

    found = {}
    for width in ABRUPT:
        for noise in (0.02, 0.05, 0.1):
            for spread in (0.3, 0.6):
                inside, count = np.zeros(2), np.zeros(2)
                while count[0] < draws:
                    edge = band_edges(noise * rng.normal(size=5))[1]
                    if not 0.005 < edge < 0.6:
                        continue
                    middle = rng.uniform(9.5, 11.5)
                    middles = middle + spread * rng.normal(size=(2, 5)) + [[0.0], [1.0]]
                    first, second = (runs(own, width, noise, edge) for own in middles)
                    truth = middle + width * np.log(edge / (1 - edge))
                    for place, (contrast, true) in enumerate(
                        ((mean_onset(first), truth), (onset_difference(first, second), 1.0))
                    ):
                        if contrast is not None:
                            inside[place] += contrast.low <= true <= contrast.high
                            count[place] += 1
                found[width, noise, spread] = tuple(100 * inside / count)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="coverage of 95 % intervals in simulation")
    parser.add_argument("--draws", type=int, default=4000)
    options = parser.parse_args()
    print(f"{'mean of':>12} {'values':12} {'ours':>6} {'percentile':>11}")
    for (size, shape), (ours, usual) in mean_coverage(options.draws).items():
        print(f"{size:>3} concepts {shape:12} {ours:5.1f}% {usual:10.1f}%")
    print(f"\n{'':18} {'concepts':>9} {'spread of networks':>19} {'covers':>7}")
    for (which, size, spread), share in contrast_coverage(options.draws).items():
        print(f"{which:18} {size:>9} {spread:>19} {share:6.1f}%")
    print(f"\n{'rise':>8} {'noise':>6} {'spread of runs':>15} {'onset':>7} {'difference':>11}")
    for (width, noise, spread), (onset, difference) in onset_coverage(options.draws).items():
        print(f"{width:>8} {noise:>6} {spread:>15} {onset:6.1f}% {difference:10.1f}%")


if __name__ == "__main__":
    main()
