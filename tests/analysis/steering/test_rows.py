"""Rows of a steering experiment: effects are paired, and a rate without a hit is no certainty."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from analysis.base import Row
from analysis.statistics import wilson_interval
from analysis.steering.generated import GeneratedText, Setting, Words
from analysis.steering.rows import rows_of

CONCEPTS = tuple("abcdefgh")
ALONE = {concept: number for number, concept in enumerate(CONCEPTS)}


def generated(hits: dict[str, dict[str, int]], concepts: tuple[str, ...] = CONCEPTS) -> list[GeneratedText]:
    """Ten texts a condition and concept, `hits[condition][concept]` of them name it; none does without intervention."""
    made = []
    for condition, concept, seed in itertools.product(hits, concepts, range(10)):
        named = frozenset({"es"} if seed < hits[condition][concept] else ())
        setting = Setting(condition, concept, "es", 5, 0, seed)
        made.append(GeneratedText(setting, (1, 2, 3), "text", "es", Words({concept: named})))
    for seed in range(10):
        words = Words({concept: frozenset[str]() for concept in concepts})
        made.append(GeneratedText(Setting("none", None, None, None, 0, seed), (1,), "text", "es", words))
    return made


def row(rows: list[Row], metric: str, condition: str, language: str | None = None, concept: str | None = None) -> Row:
    [found] = [
        row
        for row in rows
        if (row.metric, row.condition, row.language, row.concept) == (metric, condition, language, concept)
    ]
    return found


def test_an_effect_is_the_difference_to_each_control_paired_over_concepts() -> None:
    """Concepts differ much more than conditions do: intervals of the rates overlap, the paired difference is clear."""
    base = dict(zip(CONCEPTS, (0, 1, 2, 3, 5, 6, 7, 8), strict=True))
    experts = {concept: hits + 1 + (index % 2) for index, (concept, hits) in enumerate(base.items())}
    rows = list(rows_of(generated({"experts": experts, "random": base}), ALONE, ["es"], ["es"], seed=0))
    rates = [row(rows, "concept_hit", condition) for condition in ("experts", "random")]
    assert rates[0].low is not None
    assert rates[0].low < rates[1].value, "nobody could tell from these"
    effect = row(rows, "concept_hit_effect", "random")
    differences = np.array([experts[c] - base[c] for c in CONCEPTS]) / 10
    assert (effect.value, effect.k, effect.chance) == (pytest.approx(differences.mean()), 5, 0.0)
    assert effect.p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue)
    assert effect.low is not None
    assert 0 < effect.low < effect.value
    against_nothing = row(rows, "concept_hit_effect", "none")
    assert against_nothing.value == pytest.approx(np.mean([*experts.values()]) / 10)
    assert row(rows, "concept_hit_effect", "random", language="es").value == pytest.approx(effect.value)


def test_equal_rates_have_no_effect() -> None:
    same = dict.fromkeys(CONCEPTS, 3)
    rows = list(rows_of(generated({"experts": same, "random": same}), ALONE, ["es"], ["es"], seed=0))
    effect = row(rows, "concept_hit_effect", "random")
    assert (effect.value, effect.p) == (0.0, 1.0)


def test_one_concept_is_paired_over_seeds() -> None:
    made = generated({"experts": {"a": 7}, "random": {"a": 2}}, ("a",))
    effect = row(list(rows_of(made, {"a": 0}, ["es"], ["es"], seed=0)), "concept_hit_effect", "random")
    differences = np.array([1.0 if 2 <= seed < 7 else 0.0 for seed in range(10)])
    assert effect.value == pytest.approx(0.5)
    assert effect.p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue)


def test_one_group_of_concepts_has_no_interval_over_concepts() -> None:
    """Where it had one of no width: what nothing shows is not certain."""
    hits = {"experts": {"a": 7, "b": 5}, "random": {"a": 2, "b": 2}}
    rows = list(rows_of(generated(hits, ("a", "b")), {"a": 0, "b": 0}, ["es"], ["es"], seed=0))
    found = row(rows, "repetition", "experts")
    assert (found.low, found.high) == (None, None)
    share = row(rows, "concept_hit", "experts")
    assert share.low is not None
    assert share.high is not None
    assert share.low < share.value < share.high


def test_a_single_value_has_neither_interval_nor_p() -> None:
    """One concept, or one group of them, written with one seed."""
    for hits, clusters in (({"a": 1}, {"a": 0}), ({"a": 1, "b": 1}, {"a": 0, "b": 0})):
        made = generated({"experts": hits, "random": dict.fromkeys(hits, 0)}, tuple(hits))
        rows = list(rows_of([text for text in made if text.setting.seed == 0], clusters, ["es"], ["es"], seed=0))
        for found in (row(rows, "concept_hit_effect", "random"), row(rows, "repetition", "experts")):
            assert (found.low, found.high, found.p) == (None, None, None)
        assert row(rows, "concept_hit_effect", "random").value == 1.0
        assert row(rows, "concept_hit", "experts").low is not None, "Wilson's knows the width of a single text"


def test_concepts_that_depend_on_each_other_count_once() -> None:
    """Each concept twice says no more than each once, and one group of concepts as little as one concept."""
    one = dict(zip("abcd", (0, 2, 5, 9), strict=True))
    twice = one | dict(zip("efgh", one.values(), strict=True))
    groups = dict(zip(CONCEPTS, (0, 1, 2, 3) * 2, strict=True))
    found = []
    for hits, clusters in ((one, {c: groups[c] for c in one}), (twice, groups), (twice, ALONE)):
        base = dict.fromkeys(hits, 0)
        made = generated({"experts": hits, "random": base}, tuple(hits))
        rows = list(rows_of(made, clusters, ["es"], ["es"], seed=0))
        found.append(
            [row(rows, metric, c) for metric, c in (("concept_hit_effect", "random"), ("concept_hit", "experts"))]
        )
    for once, grouped, apart in zip(*found, strict=True):
        assert (grouped.low, grouped.high) == pytest.approx((once.low, once.high))
        assert grouped.p == (once.p and pytest.approx(once.p))
        assert apart.value == pytest.approx(grouped.value)
    assert found[2][0].low is not None
    assert found[1][0].low is not None
    assert found[2][0].low > found[1][0].low
    made = generated({"experts": {"a": 7, "b": 5}, "random": {"a": 2, "b": 2}}, ("a", "b"))
    effect = row(list(rows_of(made, {"a": 0, "b": 0}, ["es"], ["es"], seed=0)), "concept_hit_effect", "random")
    differences = np.array([(2 <= seed < 7) / 2 + (2 <= seed < 5) / 2 for seed in range(10)])
    assert (effect.value, effect.p) == pytest.approx((0.4, stats.ttest_1samp(differences, 0.0).pvalue))


def test_a_rate_without_a_hit_has_the_width_of_wilson() -> None:
    none = dict.fromkeys(CONCEPTS, 0)
    rows = list(rows_of(generated({"experts": none}), ALONE, ["es"], ["es"], seed=0))
    overall, of_one = row(rows, "concept_hit", "experts"), row(rows, "concept_hit", "experts", concept="a")
    assert (overall.value, overall.low, overall.high) == (0.0, 0.0, pytest.approx(wilson_interval(0, 80)[1]))
    assert of_one.high == pytest.approx(wilson_interval(0, 10)[1])
