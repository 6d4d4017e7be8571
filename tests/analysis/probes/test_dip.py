"""The dip of the middle on planted accuracies: found, covered by its interval, sharper when paired."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.extraction.encoding import Encoded
from analysis.extraction.states import TokenSample
from analysis.probes.dip import DipCounts, count_dip, dip_change, measure_dip, middle_third
from analysis.probes.scores import spread_row

NUM_KEYS, PER_KEY, SEEDS = 120, 8, 2


def make_sample() -> TokenSample:
    """`PER_KEY` tokens of each key; only keys matter here."""
    key = np.repeat(np.arange(NUM_KEYS), PER_KEY)
    zeros = np.zeros(len(key), dtype=np.int64)
    return TokenSample(
        ("aa", "bb"), Encoded([], []), zeros, zeros, zeros, zeros, key, tuple(f"k{k}" for k in range(NUM_KEYS))
    )


def answers(accuracies: list[float], generator: np.random.Generator, ease: np.ndarray | None = None) -> np.ndarray:
    """Right answers (Y, S, N): sentences differ in how easy they are, in all layers alike."""
    if ease is None:
        ease = generator.normal(0, 0.1, NUM_KEYS)
    chance = np.array(accuracies)[:, None, None] + np.repeat(ease, PER_KEY)
    return generator.random((len(accuracies), SEEDS, NUM_KEYS * PER_KEY)) < chance


MASK = np.ones((SEEDS, NUM_KEYS * PER_KEY), dtype=bool)
FALLEN = [0.8, 0.75, 0.7, 0.6, 0.6, 0.7, 0.75]
LEVEL = [0.7] * 7


@pytest.mark.parametrize(
    ("blocks", "expected"), [(3, [1]), (4, [1, 2]), (6, [2, 3]), (8, [3, 4]), (24, list(range(8, 16)))]
)
def test_the_middle_third(blocks: int, expected: list[int]) -> None:
    assert list(middle_third(blocks)) == expected


def test_a_planted_dip_is_found_and_covered() -> None:
    generator, covered = np.random.default_rng(0), 0
    for _ in range(100):
        found = measure_dip(count_dip(answers(FALLEN, generator), MASK, make_sample()))
        covered += found.low <= -0.2 <= found.high
        assert found.high < 0
    assert 90 <= covered <= 99


def test_a_level_network_has_no_dip() -> None:
    generator = np.random.default_rng(1)
    found = [measure_dip(count_dip(answers(LEVEL, generator), MASK, make_sample())) for _ in range(100)]
    assert sum(one.high < -0.02 for one in found) == 0
    assert sum(one.high < 0 for one in found) <= 5


def test_a_change_is_paired_over_sentences() -> None:
    generator = np.random.default_rng(2)
    ease = generator.normal(0, 0.1, NUM_KEYS)
    before = count_dip(answers(LEVEL, generator, ease), MASK, make_sample())
    after = count_dip(answers(FALLEN, generator, ease), MASK, make_sample())
    change = dip_change(before, after)
    assert change.low < -0.2 < change.high < 0
    same = dip_change(after, after)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    part = DipCounts(after.keys[:50], *(getattr(after, name)[:50] for name in ("embedding", "middle", "last", "total")))
    assert dip_change(before, part).high < 0, "only the keys that both have count"
    with pytest.raises(ValueError, match="no key is in both"):
        dip_change(before, DipCounts(("x",), *(np.ones(1) for _ in range(4))))


def test_counts_survive_the_attachment() -> None:
    counts = count_dip(answers(FALLEN, np.random.default_rng(3)), MASK, make_sample())
    again = DipCounts.from_arrow(counts.to_arrow())
    assert again.keys == counts.keys
    assert measure_dip(again) == measure_dip(counts)


def test_spread_of_equal_layers_is_its_chance_and_a_planted_one_is_above() -> None:
    generator = np.random.default_rng(4)
    level = [spread_row(answers(LEVEL, generator), MASK, make_sample()) for _ in range(30)]
    assert np.mean([row.value for row in level]) == pytest.approx(np.mean([row.chance for row in level]), rel=0.3)
    fallen = spread_row(answers(FALLEN, generator), MASK, make_sample())
    assert fallen.low < 0.2 < fallen.high
    assert fallen.low > 2 * fallen.chance
