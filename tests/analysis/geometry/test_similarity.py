"""Every similarity against a slow, literal implementation, on planted truth and on degenerate states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from calibrated_similarity import calibrate as published_calibrate
from torch import Tensor

from analysis.geometry.calibration import calibrate, draw_permutations, draw_signs, influence_interval
from analysis.geometry.similarity import SHARES, SYMMETRIC, Similarity, compare_languages

BROKEN_BY_PERMUTATION = [measure for measure in SYMMETRIC if measure != "abx_language"]


def _unbiased_hsic(k: Tensor, m: Tensor) -> Tensor:
    """Song et al. (2012), equation 5."""
    n = len(k)
    k, m = k - torch.diag(k.diagonal()), m - torch.diag(m.diagonal())
    one = torch.ones(n, dtype=k.dtype)
    value = torch.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (value - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def _literal_debiased(x: Tensor, y: Tensor) -> Tensor:
    k, m = x @ x.T, y @ y.T
    return _unbiased_hsic(k, m) / (_unbiased_hsic(k, k) * _unbiased_hsic(m, m)).sqrt()


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T


def _literal_knn(x: Tensor, y: Tensor, k: int = 3) -> Tensor:
    shared = 0
    for states in range(len(x)):
        near = []
        for z in (x, y):
            order = _cosines(z, z)[states]
            order[states] = -2
            near.append(set(order.topk(k).indices.tolist()))
        shared += len(near[0] & near[1])
    return torch.tensor(shared / (k * len(x)))


def _literal_mexa(x: Tensor, y: Tensor) -> Tensor:
    c = _cosines(x, y)
    hits = 0
    for i in range(len(c)):
        rivals = [float(c[i, j]) for j in range(len(c)) if j != i] + [float(c[j, i]) for j in range(len(c)) if j != i]
        hits += float(c[i, i]) > max(rivals)
    return torch.tensor(hits / len(c))


def _literal_abx_meaning(x: Tensor, y: Tensor) -> Tensor:
    c = _cosines(x, y)
    n = len(c)
    wins = [float(c[i, i] > c[j, i]) + float(c[i, i] > c[i, j]) for i in range(n) for j in range(n) if i != j]
    return torch.tensor(np.mean(wins) / 2)


def _literal_abx_language(x: Tensor, y: Tensor) -> Tensor:
    xx, yy, xy = _cosines(x, x), _cosines(y, y), _cosines(x, y)
    n = len(x)
    wins = [float(xx[i, j] > xy[j, i]) + float(yy[i, j] > xy[i, j]) for i in range(n) for j in range(n) if i != j]
    return torch.tensor(np.mean(wins) / 2)


LITERAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cka_debiased": _literal_debiased,
    "mutual_knn": _literal_knn,
    "mexa": _literal_mexa,
    "abx_meaning": _literal_abx_meaning,
    "abx_language": _literal_abx_language,
}


def _languages(signal: float, sentences: int = 24, width: int = 10, seed: int = 0) -> Tensor:
    """(3, n, D): a shared meaning of the given strength, an offset per language, noise."""
    generator = torch.Generator().manual_seed(seed)
    meaning = torch.randn(sentences, width, generator=generator, dtype=torch.float64)
    offsets = 0.7 * torch.randn(3, 1, width, generator=generator, dtype=torch.float64)
    return signal * meaning + offsets + torch.randn(3, sentences, width, generator=generator, dtype=torch.float64)


def _compare(states: Tensor, count: int = 50, neighbours: int = 3, **options: object) -> dict[str, Similarity]:
    pairs = [(i, j) for i in range(len(states)) for j in range(i + 1, len(states))]
    permutations = draw_permutations(states.shape[1], count, 0)
    signs = draw_signs(states.shape[1], count, 0).to(states.dtype)
    return compare_languages(states, pairs, permutations, signs, neighbours=neighbours, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("measure", SYMMETRIC)
def test_values_are_those_of_the_definition(measure: str) -> None:
    states = _languages(1.0)
    found = _compare(states)[measure].observed
    expected = [LITERAL[measure](states[i], states[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert torch.allclose(found.double(), torch.stack(expected).double(), atol=1e-9)


@pytest.mark.parametrize("measure", BROKEN_BY_PERMUTATION)
def test_nulls_and_calibration_are_those_of_permuted_states(measure: str) -> None:
    states = _languages(0.8)
    permutations = draw_permutations(states.shape[1], 20, 0)
    found = _compare(states, count=20)[measure]
    for number, permutation in enumerate(permutations[:5]):
        expected = LITERAL[measure](states[0], states[2][permutation])
        assert float(found.null[number, 1]) == pytest.approx(float(expected), abs=1e-7)
    queue = iter(permutations)
    published = published_calibrate(states[0], states[2], LITERAL[measure], K=20, perm_fn=lambda n, device: next(queue))
    ours = calibrate(found.observed, found.null)
    for mine, theirs in zip((ours.score[1], ours.p[1], ours.threshold[1]), published, strict=True):
        assert float(mine) == pytest.approx(float(theirs), abs=1e-6)


def test_null_of_language_abx_exchanges_the_languages_of_sentences() -> None:
    states = _languages(0.5)
    signs = draw_signs(states.shape[1], 20, 0)
    found = _compare(states, count=20)["abx_language"]
    for number in range(5):
        swap = (signs[number] < 0)[:, None]
        x, y = torch.where(swap, states[1], states[0]), torch.where(swap, states[0], states[1])
        assert float(found.null[number, 0]) == pytest.approx(float(_literal_abx_language(x, y)), abs=1e-6)


def test_copies_are_perfectly_aligned_and_share_no_language() -> None:
    states = torch.randn(1, 30, 8).expand(2, -1, -1)
    found = _compare(states)
    for measure in BROKEN_BY_PERMUTATION:
        assert float(found[measure].observed) == pytest.approx(1.0, abs=1e-5), measure
        assert float(calibrate(found[measure].observed, found[measure].null).score) == pytest.approx(1.0, abs=1e-4)
    assert float(found["abx_language"].observed) == 0.5


def test_rotation_and_scale_keep_cka_at_one() -> None:
    first = torch.randn(30, 8, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    found = _compare(torch.stack([first, 3 * first @ basis + 5]))
    assert float(found["cka_debiased"].observed) == pytest.approx(1.0)


def test_independent_languages_are_at_chance() -> None:
    """Sixty independent pairs: few calibrated scores above zero, p values spread evenly, means at chance."""
    states = torch.randn(40, 40, 16)
    pairs = [(2 * i, 2 * i + 1) for i in range(20)]
    permutations, signs = draw_permutations(40, 100, 0), draw_signs(40, 100, 0)
    for measure, found in compare_languages(states, pairs, permutations, signs, neighbours=5).items():
        calibrated = calibrate(found.observed, found.null)
        # Probability of six or more of 20 at 5 % each: 3e-4.
        assert int((calibrated.score > 0).sum()) < 6, measure
        assert 0.25 < float(calibrated.p.mean()) < 0.75 or measure == "mexa"
        spread = float(found.null.std()) / 20**0.5
        assert abs(float((found.observed - found.chance).mean())) < 4.5 * spread, measure


def test_language_offset_is_seen_by_language_abx_and_not_by_debiased_cka() -> None:
    generator = torch.Generator().manual_seed(1)
    meaning = torch.randn(40, 12, generator=generator)
    offset = torch.zeros(2, 1, 12)
    offset[0, 0, 0], offset[1, 0, 0] = 8.0, -8.0
    noise = 0.1 * torch.randn(2, 40, 12, generator=generator)
    apart = _compare(meaning + offset + noise)
    together = _compare(meaning + noise)
    assert float(apart["abx_language"].observed) > 0.99
    assert float(calibrate(apart["abx_language"].observed, apart["abx_language"].null).p) < 0.05
    assert abs(float(together["abx_language"].observed) - 0.5) < 0.05
    assert float(apart["cka_debiased"].observed) == pytest.approx(float(together["cka_debiased"].observed), abs=1e-4)
    assert float(apart["abx_meaning"].observed) > 0.9


@pytest.mark.parametrize("signal", [0.0, 1.2, 3.5])
def test_intervals_cover(signal: float) -> None:
    """Against the mean of all draws; 95 % of 100 are 95, and 88 is three standard errors below."""
    generator = torch.Generator().manual_seed(1)
    permutations, signs = draw_permutations(60, 1, 0), draw_signs(60, 1, 0).double()
    values: dict[str, list[float]] = {measure: [] for measure in SYMMETRIC}
    bounds: dict[str, list[tuple[float, float]]] = {measure: [] for measure in SYMMETRIC}
    offset = torch.tensor([0.0, 0.5], dtype=torch.float64)[:, None, None]
    for _ in range(100):
        meaning, *noise = torch.randn(3, 60, 24, generator=generator, dtype=torch.float64)
        states = signal * meaning + offset + torch.stack(noise)
        for measure, found in compare_languages(states, [(0, 1)], permutations, signs).items():
            value = float(found.observed)
            values[measure].append(value)
            bounds[measure].append(influence_interval(value, found.influence[0].numpy(), measure in SHARES))
    for measure in SYMMETRIC:
        truth = np.mean(values[measure])
        covered = sum(low <= truth <= high for low, high in bounds[measure])
        assert covered >= 88, (measure, covered)
        assert all(low <= value <= high for value, (low, high) in zip(values[measure], bounds[measure], strict=True))
        assert all(high > low for low, high in bounds[measure]), "no interval without width, at the border either"


@pytest.mark.parametrize("measure", ["cka_debiased", "abx_meaning", "abx_language"])
def test_influence_agrees_with_the_jackknife(measure: str) -> None:
    states = _languages(1.0, sentences=60)
    full = _compare(states, count=2, measures=[measure])[measure]
    kept = [torch.arange(60) != left_out for left_out in range(60)]
    parts = [_compare(states[:, keep], count=2, measures=[measure])[measure] for keep in kept]
    without = torch.stack([part.observed for part in parts])  # (n, Q)
    jackknife = (59 / 60 * (without - without.mean(0)).square().sum(0)).sqrt()
    ours = full.influence.std(dim=1, correction=0) / 60**0.5
    assert torch.allclose(ours, jackknife, rtol=0.15)
    assert torch.allclose(full.influence.mean(dim=1), full.observed, atol=1e-9)


@pytest.mark.parametrize("states", ["constant", "zero", "two values"])
def test_collapsed_states_are_at_chance_and_finite(states: str) -> None:
    values = torch.zeros(2, 20, 6)
    if states == "constant":
        values += torch.arange(1.0, 7.0)
    elif states == "two values":
        values[:, :, 0] = 1.0
        values[1, :, 1] = 1.0
    for measure, found in _compare(values, neighbours=5).items():
        for tensor in (found.observed, found.null, found.chance, found.influence):
            assert bool(torch.isfinite(tensor).all()), measure
        calibrated = calibrate(found.observed, found.null)
        if not (measure == "abx_language" and states == "two values"):
            assert float(calibrated.score) == 0, measure
            assert float(found.observed) == pytest.approx(float(found.chance), abs=1e-6), measure


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measures": ["rsa"]}, "unknown measure 'rsa'"),
        ({"measures": []}, "unknown measure"),
        ({"neighbours": 23}, "too few"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _compare(_languages(1.0), **change)  # type: ignore[arg-type]
    broken = _languages(1.0)
    broken[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        _compare(broken)
