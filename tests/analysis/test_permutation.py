"""What languages share by script or family is found in a table of pairs, and only where it was planted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest

from analysis.permutation import regress_on_distances

LANGUAGES = ("de", "en", "es", "fr", "hu", "it", "ja", "ko", "pl", "pt", "ru", "zh")
SCRIPT = dict.fromkeys(LANGUAGES, "latin") | {"ja": "han", "zh": "han", "ko": "hangul", "ru": "cyrillic"}
FAMILY = dict.fromkeys(LANGUAGES, "indo-european") | {
    "hu": "uralic",
    "ja": "japonic",
    "ko": "koreanic",
    "zh": "sinitic",
}
PAIRS = list(combinations(LANGUAGES, 2))
DISTANCES = {
    "script": {pair: float(SCRIPT[pair[0]] != SCRIPT[pair[1]]) for pair in PAIRS},
    "family": {pair: float(FAMILY[pair[0]] != FAMILY[pair[1]]) for pair in PAIRS},
}


def draws(count: int, **effects: float) -> Iterator[dict[tuple[str, str], float]]:
    """Tables of pairs: planted effects, an own level for every language (so pairs depend on each other), and noise."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        level = dict(zip(LANGUAGES, 0.7 * generator.normal(size=len(LANGUAGES)), strict=True))
        yield {
            pair: level[pair[0]]
            + level[pair[1]]
            + generator.normal()
            - sum(effect * DISTANCES[name][pair] for name, effect in effects.items())
            for pair in PAIRS
        }


@pytest.mark.parametrize("planted", [{}, {"script": 2.0}, {"family": 2.0}], ids=["nothing", "script", "family"])
def test_what_was_planted_is_found_and_nothing_else(planted: dict[str, float]) -> None:
    """150 tables; at 5 % chance rejects more than 9 % of them once in a hundred."""
    rejected = dict.fromkeys(DISTANCES, 0)
    for response in draws(150, **planted):
        for name, found in regress_on_distances(LANGUAGES, response, DISTANCES, permutations=199).items():
            rejected[name] += found.p <= 0.05
            assert found.p >= 1 / 200
    for name, count in rejected.items():
        if name in planted:
            assert count > 0.6 * 150
        else:
            assert count < 0.1 * 150


def test_the_coefficients_are_those_of_least_squares() -> None:
    (response,) = draws(1, script=1.0)
    found = regress_on_distances(LANGUAGES, response, DISTANCES, permutations=9)
    design = np.stack([np.ones(len(PAIRS)), *([of[pair] for pair in PAIRS] for of in DISTANCES.values())], axis=1)
    expected = np.linalg.lstsq(design, np.array([response[pair] for pair in PAIRS]), rcond=None)[0]
    np.testing.assert_allclose([found[name].coefficient for name in DISTANCES], expected[1:])
    again = regress_on_distances(LANGUAGES, response, DISTANCES, permutations=9)
    assert again == found


def test_tables_that_cannot_be_tested_are_refused() -> None:
    (response,) = draws(1)
    with pytest.raises(ValueError, match="follows from the other distances"):
        regress_on_distances(LANGUAGES, response, {**DISTANCES, "again": DISTANCES["script"]})
    with pytest.raises(ValueError, match="at least 4"):
        regress_on_distances(LANGUAGES[:3], response, DISTANCES)
    with pytest.raises(ValueError, match="no response of de-en"):
        regress_on_distances(LANGUAGES, {}, DISTANCES)
