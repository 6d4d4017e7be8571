"""Intervals and corrections that every measure shares.

Intervals are over concepts, sentences, random networks or training seeds, never over units, which are not a sample of
anything. They are made to cover with few of them: tests/benchmarks/bench_coverage.py simulates it, docs/measures.md
quotes it.

Shapes:  S resampled things (concepts, sentences)   M quantities   R training runs   C concepts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import false_discovery_control, norm, t

WIDEST = 2.0
"""A studentised bound is at most this many times Student's: wider ones cover no better and hang on one outlier."""

KNOWN = 10**9
"""Degrees of freedom of a variance that is not estimated."""

POWER = 0.8
""""Would have been seen" means in this share of all draws."""


def bootstrap_interval(
    values: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the mean over the first axis that covers for few and for skewed values.

    On each side the wider of Student's t and the studentised bootstrap (Efron 1979, Hall 1988): the first is right for
    few normal values, the second for skewed ones, where percentiles of 6 values cover 80 to 85 % in place of 95.

    Args:
        values: (S,) or (S, M); all M quantities are resampled together.
        clusters: (S,) groups of values that depend on each other and are resampled as one.
        num_resamples: draws of S out of S with replacement.

    Returns:
        Lower and upper bound, each () or (M,); NaN of one single thing or cluster, whose spread nothing shows. `Row`
        takes such bounds for none.

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
    values = merge_clusters(values, clusters)
    size, mean = len(values), values.mean(axis=0)
    if size == 1:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    centred = values - mean
    error = centred.std(axis=0, ddof=1) / np.sqrt(size)
    weights = draw_again(size, num_resamples, seed) / size
    means = weights @ centred
    spread = np.sqrt(np.maximum(weights @ centred**2 - means**2, 0.0) / (size - 1))
    # A resample of one single value says nothing about its own spread.
    ratios = np.divide(means, spread, out=np.zeros_like(means), where=spread > 1e-9 * error)
    below, above = np.quantile(ratios, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0)
    student = t.ppf((1.0 + level) / 2.0, size - 1)
    upper = np.clip(above, student, WIDEST * student)
    lower = np.clip(below, -WIDEST * student, -student)
    return mean - upper * error, mean - lower * error


def draw_again(size: int, num_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """How often a bootstrap draws each of S things, (num_resamples, S): the same draws for the same seed, so that
    differences are paired."""
    drawn: np.ndarray = np.random.default_rng(seed).multinomial(size, np.full(size, 1.0 / size), size=num_resamples)
    return drawn


def merge_clusters(values: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    """One value for each cluster (G, ...), with the mean over values (S, ...) as their mean.

    A cluster counts by the sum of its members' differences from the mean, so that means over all stay what they are.
    """
    if clusters is None:
        return values
    _, member = np.unique(clusters, return_inverse=True)
    num_clusters = int(member.max()) + 1
    mean = values.mean(axis=0)
    sums = np.zeros((num_clusters, *values.shape[1:]))
    np.add.at(sums, member, values - mean)
    return mean + sums * num_clusters / len(values)


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a share of `total` independent texts (Wilson 1927): has a width where none or all are hits.

    Raises:
        ValueError: not 0 <= hits <= total, or no texts.
    """
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"{hits} hits of {total}")
    low, high = wilson_bounds(hits / total, total, float(norm.ppf(0.975)))
    return max(0.0, low), min(1.0, high)


def wilson_bounds(share: float, answers: float, z: float) -> tuple[float, float]:
    """Wilson's bounds of a share in [0, 1] of so many answers, more than 0 and not always a whole number.

    Args:
        z: quantile of the normal distribution, 1.96 for 95 %.
    """
    shrink = 1.0 + z**2 / answers
    middle = (share + z**2 / (2 * answers)) / shrink
    half = z / shrink * float(np.sqrt(share * (1.0 - share) / answers + z**2 / (4 * answers**2)))
    return middle - half, middle + half


@dataclass(frozen=True)
class Contrast:
    """A difference with its 95 % interval and a two-sided p."""

    difference: float
    low: float
    high: float
    p: float
    freedom: float
    """Degrees of freedom of the error, those of what it is made of weighed by Welch and Satterthwaite."""

    @property
    def visible(self) -> float:
        """The smallest difference that would have been seen with a power of 80 % (two-sided, 5 %)."""
        return smallest_visible((self.high - self.low) / 2, self.freedom)


def against_band(values: np.ndarray, band: np.ndarray, clusters: np.ndarray | None = None) -> Contrast:
    """One network against random networks, paired over concepts.

    Under the null the network is one more draw of the band. Two errors add up, without what they share: that of the
    concepts, from the paired differences, and that of the network, from the spread of the band (one new draw against a
    mean of n, so 1 + 1/n times its variance).

    Args:
        values: (C,) of the network.
        band: (n, C) of n random networks on the same sentences.
        clusters: (C,) groups of concepts that depend on each other.

    Raises:
        ValueError: fewer than two networks or concepts, or shapes that do not match.
    """
    values, band = np.asarray(values, dtype=np.float64), np.asarray(band, dtype=np.float64)
    if band.ndim != 2 or values.shape != band.shape[1:] or min(band.shape) < 2:
        raise ValueError(f"values {values.shape} against a band {band.shape}: needs (C,) and (n, C), both at least 2")
    merged = merge_clusters((band - values).T, clusters).T
    networks, concepts = merged.shape
    of_networks = merged.mean(axis=1).var(ddof=1) * (1.0 + 1.0 / networks)
    if concepts == 1:
        return student_contrast(-float(merged.mean()), [(of_networks, networks - 1)])
    of_concepts = merged.mean(axis=0).var(ddof=1) / concepts
    noise = _interaction(merged) / concepts * (1.0 + 1.0 / networks)
    return student_contrast(-float(merged.mean()), _add(of_networks, of_concepts, noise, merged.shape))


def two_way_interval(values: np.ndarray, clusters: np.ndarray | None = None) -> Contrast:
    """Mean over training runs and concepts, both a sample: neither more concepts nor more runs alone make it certain.

    Variance by two-way random effects (the sum of both, without what they share), never below the larger of the two.

    Args:
        values: (R, C), each a difference to the untrained network of the same run.

    Raises:
        ValueError: fewer than two runs or concepts.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(f"values {values.shape}: needs (runs, concepts), at least two of each")
    merged = merge_clusters(values.T, clusters).T
    runs, concepts = merged.shape
    if concepts == 1:
        raise ValueError("the concepts depend on each other, all of them: at least two groups are needed")
    of_runs = merged.mean(axis=1).var(ddof=1) / runs
    of_concepts = merged.mean(axis=0).var(ddof=1) / concepts
    noise = _interaction(merged) / (runs * concepts)
    return student_contrast(float(merged.mean()), _add(of_runs, of_concepts, noise, merged.shape))


def mean_contrast(values: np.ndarray, unseen: float = 0.0) -> Contrast:
    """Mean of a few values (S,), one for each training run, with Student's interval and p against 0.

    Args:
        unseen: variance of the mean that the spread of the values does not show, such as an error common to all.

    Raises:
        ValueError: fewer than two values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values {values.shape}: a mean over runs needs two of them, or more")
    return student_contrast(
        float(values.mean()), [(float(values.var(ddof=1)) / len(values), len(values) - 1), (unseen, KNOWN)]
    )


def mean_interval(values: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """95 % bounds of the mean of a few independent values (Student's t); none for a single one."""
    if len(values) < 2:
        return None, None
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def mean_above_zero(values: np.ndarray, clusters: np.ndarray | None = None) -> float:
    """One-sided p of Student's t: mean over concepts (S,) at least this large if the truth is 0; 1 for one cluster."""
    merged = merge_clusters(np.asarray(values, dtype=np.float64), clusters)
    if len(merged) == 1:
        return 1.0
    mean, error = float(merged.mean()), float(merged.std(ddof=1) / np.sqrt(len(merged)))
    return float(t.sf(mean / error, len(merged) - 1)) if error > 0.0 else float(mean <= 0.0)


def paired_contrast(differences: np.ndarray, clusters: np.ndarray | None = None) -> Contrast:
    """Mean of paired differences (S,) with its interval (`bootstrap_interval`) and Student's p, two-sided; of a single
    one, or one cluster, bounds are NaN and p is 1."""
    low, high = bootstrap_interval(differences, clusters=clusters)
    p = 2.0 * min(mean_above_zero(differences, clusters), mean_above_zero(-np.asarray(differences), clusters))
    freedom = max(1, len(merge_clusters(np.asarray(differences), clusters)) - 1)
    return Contrast(float(np.mean(differences)), float(low), float(high), min(1.0, p), freedom)


def _interaction(values: np.ndarray) -> float:
    """Mean square of what rows and columns of (R, C) do not explain."""
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    return float((rest**2).sum() / ((values.shape[0] - 1) * (values.shape[1] - 1)))


def _add(of_rows: float, of_columns: float, shared: float, shape: tuple[int, ...]) -> list[tuple[float, int]]:
    """Variances with their degrees of freedom: both without what they share, but no less than the larger."""
    rows, columns = (of_rows, shape[0] - 1), (of_columns, shape[1] - 1)
    if shared >= min(of_rows, of_columns):
        return [max(rows, columns)]
    return [rows, columns, (-shared, rows[1] * columns[1])]


def student_contrast(difference: float, parts: list[tuple[float, int]]) -> Contrast:
    """Student's t with the sum of variances, and degrees of freedom by Welch and Satterthwaite."""
    variance = sum(part for part, _ in parts)
    if variance <= 0.0:
        return Contrast(difference, difference, difference, float(difference == 0.0), KNOWN)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts if part)
    error = float(np.sqrt(variance))
    half = float(t.ppf(0.975, freedom)) * error
    p = float(2.0 * t.sf(abs(difference) / error, freedom))
    return Contrast(difference, difference - half, difference + half, p, float(freedom))


def smallest_visible(half_width: float, freedom: float) -> float:
    """The difference whose 95 % interval of this half width leaves 0 out in 80 % of all draws.

    Half the width is t(97.5 %) standard errors; the difference must be t(97.5 %) + t(80 %) of them from 0.
    """
    return half_width * (1.0 + float(t.ppf(POWER, freedom) / t.ppf(0.975, freedom)))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of one family of tests (Holm 1979): rejecting at most alpha keeps the chance of any false
    rejection at most alpha, however the tests depend on each other.

    Raises:
        ValueError: a value outside [0, 1].
    """
    if not all(0.0 <= value <= 1.0 for value in p):
        raise ValueError("p-values must lie between 0 and 1")
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = highest
    return adjusted


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
