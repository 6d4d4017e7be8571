"""AP by either way equals scikit-learn's, ties included; labels that make no sense are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from analysis.experts.average_precision import Labels, average_precision, settle_ties, torch_sums

NUM_TEXTS = 150
Way = Callable[[Tensor, Labels], Tensor]


def make_values(num_units: int = 40) -> Tensor:
    """Continuous units, units with many zeros of both signs, units of few distinct values, and a constant one."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(num_units, NUM_TEXTS)).astype(np.float32)
    values[10:20] = np.maximum(values[10:20], 0)
    values[12, ::3] *= -1.0  # -0.0 must tie with 0.0
    values[20:30] = np.round(values[20:30])
    values[30] = 0.25
    values[31] = values[31].astype(np.float16)
    return torch.from_numpy(values)


def make_labels(num_concepts: int = 12) -> tuple[list[Tensor], list[Tensor]]:
    """Concepts with 1 to 60 positives and other texts as negatives; some texts belong to neither side."""
    generator = np.random.default_rng(1)
    positives, negatives = [], []
    for concept in range(num_concepts):
        order = torch.from_numpy(generator.permutation(NUM_TEXTS))
        count = [1, 2, 5, 60][concept % 4]
        positives.append(order[:count])
        negatives.append(order[count : count + [1, 30, 90][concept % 3]])
    return positives, negatives


def labels_of(kind: str) -> tuple[list[Tensor], list[Tensor] | None]:
    positives, negatives = make_labels()
    if kind == "others":
        return positives, None
    if kind == "all but a few":
        rest = [np.setdiff1d(np.arange(NUM_TEXTS), yes) for yes in positives]
        return positives, [torch.from_numpy(others[place % 5 :]) for place, others in enumerate(rest)]
    return positives, negatives


@cache
def oracle(kind: str) -> np.ndarray:
    """scikit-learn, one unit and one concept at a time."""
    values = make_values()
    positives, negatives = labels_of(kind)
    ap = []
    for concept, yes in enumerate(positives):
        label = np.zeros(NUM_TEXTS, dtype=int)
        label[yes] = 1
        kept = np.arange(NUM_TEXTS) if negatives is None else torch.cat([yes, negatives[concept]]).numpy()
        scores = values.numpy()[:, kept]
        ap.append([average_precision_score(label[kept], row) for row in scores])
    return np.array(ap)


def on_device(values: Tensor, labels: Labels) -> Tensor:
    """The array operations of an accelerator, run on the CPU."""
    return (torch_sums(values, labels) / torch.from_numpy(labels.num_positives)[:, None]).float()


WAYS = [pytest.param(average_precision, id="compiled"), pytest.param(on_device, id="torch")]


def score(values: Tensor, positives: list[Tensor], negatives: list[Tensor] | None = None) -> Tensor:
    return average_precision(values, Labels(values.shape[1], positives, negatives))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["matched", "all but a few", "others"])
def test_scores_equal_scikit_learn_with_ties(way: Way, kind: str) -> None:
    ap = oracle(kind)
    assert np.abs(way(make_values(), Labels(NUM_TEXTS, *labels_of(kind))).numpy() - ap).max() < 1e-6


@pytest.mark.parametrize("kind", ["matched", "all but a few"])
def test_rows_and_lists_of_labels_give_the_same_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for crowded in (0.0, 1.0):
        monkeypatch.setattr("analysis.experts.kernels.CROWDED", crowded)
        found.append(average_precision(make_values(), Labels(NUM_TEXTS, *labels_of(kind))))
    assert np.abs(found[0].numpy() - oracle(kind)).max() < 1e-6
    assert torch.equal(*found)


def test_halves_beside_all_texts_equal_scikit_learn() -> None:
    """Concepts of the same labelled texts are walked by themselves, the others together."""
    generator = np.random.default_rng(3)
    halves = np.split(generator.permutation(NUM_TEXTS), [70])
    yes, no = [], []
    for part in (np.arange(NUM_TEXTS), *halves):
        for _ in range(20):
            order = generator.permutation(part)
            yes.append(torch.from_numpy(order[:9]))
            no.append(torch.from_numpy(order[9:]))
    positives, negatives = make_labels()
    labels = Labels(NUM_TEXTS, [*yes, *positives], [*no, *negatives])
    assert sorted(len(block.concepts) for block in labels.blocks) == [11, 20, 20, 21]  # one is labelled everywhere
    found, values = average_precision(make_values(), labels).numpy(), make_values().numpy()
    for concept in (0, 25, 59):
        kept = torch.cat([yes[concept], no[concept]]).numpy()
        truth = np.arange(len(kept)) < 9
        expected = [average_precision_score(truth, row[kept]) for row in values]
        assert np.abs(found[concept] - expected).max() < 1e-6
    assert np.abs(found[60:] - oracle("matched")).max() < 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_constant_unit_is_at_prevalence(way: Way) -> None:
    positives, negatives = make_labels()
    scores = way(torch.zeros(3, NUM_TEXTS), Labels(NUM_TEXTS, positives, negatives))
    prevalence = torch.tensor([len(p) / (len(p) + len(n)) for p, n in zip(positives, negatives, strict=True)])
    torch.testing.assert_close(scores, prevalence[:, None].expand(-1, 3))


@pytest.mark.parametrize("way", WAYS)
def test_perfect_and_reversed_detectors(way: Way) -> None:
    label = torch.zeros(NUM_TEXTS)
    label[[3, 77, 140]] = 1
    both = torch.stack([label, -label])
    assert way(both, Labels(NUM_TEXTS, [label.nonzero().flatten()]))[0, 0] == 1.0


def test_many_units_go_through_blocks_and_threads() -> None:
    values = torch.randn(700, NUM_TEXTS, generator=torch.Generator().manual_seed(0))
    positives, negatives = make_labels()
    one = score(values, positives, negatives)
    torch.set_num_threads(2)
    assert torch.equal(score(values, positives, negatives), one)
    torch.testing.assert_close(on_device(values, Labels(NUM_TEXTS, positives, negatives)), one)
    torch.testing.assert_close(score(values[137:138], positives, negatives), one[:, 137:138])


def test_shuffled_labels_are_at_prevalence() -> None:
    """Mean AP over many independent units lies above the prevalence by the known small-sample term only."""
    values = torch.randn(400, NUM_TEXTS, generator=torch.Generator().manual_seed(0))
    yes = torch.arange(50)
    mean = float(score(values, [yes]).mean())
    # E[AP] of a random ranking is (P-1)/(N-1) + H_N (1 - (P-1)/(N-1)) / N with H_N the harmonic number (Bestgen 2015).
    share = 49 / 149
    expected = share + (1 - share) * float((1 / np.arange(1, 151)).sum()) / 150
    assert abs(mean - expected) < 0.005


def test_rounding_errors_do_not_break_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(200, 40, generator=generator)[:, torch.randint(0, 40, (NUM_TEXTS,), generator=generator)]
    scale = 10.0 ** torch.arange(-8, 12, 0.1)[:200, None]  # units of every magnitude
    noisy = scale * (exact + 1e-6 * torch.randn(exact.shape, generator=generator))
    yes = [torch.arange(20)]
    expected = score(exact, yes)
    assert (score(noisy, yes) - expected).abs().mean() > 0.005
    assert (score(settle_ties(noisy), yes) - expected).abs().mean() < 0.0005
    smooth = torch.randn(200, NUM_TEXTS, generator=generator)
    assert (score(settle_ties(smooth), yes) - score(smooth, yes)).abs().mean() < 1e-4
    assert torch.equal(settle_ties(torch.zeros(2, 3)), torch.zeros(2, 3))
    sparse = torch.zeros(1, 8000)  # a ReLU that fires on the positives of one concept of a large pool
    sparse[0, :40] = torch.linspace(5e-5, 1e-4, 40)
    assert len(settle_ties(sparse).unique()) == 41, "small beside 1, but not beside what the unit gives"
    extremes = settle_ties(torch.tensor([[1e-42, 0.0], [3e38, -3e38]]))
    assert torch.isfinite(extremes).all()
    torch.testing.assert_close(extremes[1], torch.tensor([3e38, -3e38]), rtol=2e-4, atol=0.0)


@pytest.mark.parametrize(
    ("positives", "negatives", "match"),
    [
        ([torch.tensor([], dtype=torch.int64)], None, "0 positives"),
        ([torch.arange(NUM_TEXTS)], None, "0 negatives"),
        ([torch.tensor([1])], [torch.tensor([], dtype=torch.int64)], "0 negatives"),
        ([torch.tensor([1, 1])], None, "twice"),
        ([torch.tensor([1, 2])], [torch.tensor([2, 3])], "twice"),
        ([torch.tensor([1])], [torch.tensor([3, 3])], "twice"),
        ([torch.tensor([NUM_TEXTS])], None, "outside the pool"),
        ([torch.tensor([1])], [torch.tensor([-1])], "outside the pool"),
        ([torch.tensor([1])], [], "1 concepts have positives but 0"),
        ([], None, "no concepts"),
    ],
)
def test_labels_that_make_no_sense_are_refused(
    positives: list[Tensor], negatives: list[Tensor] | None, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        score(torch.zeros(2, NUM_TEXTS), positives, negatives)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_without_ranking_are_refused(bad: float) -> None:
    values = torch.zeros(2, NUM_TEXTS)
    values[1, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        score(values, [torch.tensor([1])])
