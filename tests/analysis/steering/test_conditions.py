"""Conditions of steering: which units each holds, and at what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from analysis.concepts.concept_set import ConceptPool, ConceptSet
from analysis.experts.table import ExpertTable, find_experts
from analysis.extraction.encoding import encode_texts
from analysis.extraction.hooks import read_sites
from analysis.extraction.options import Extraction
from analysis.extraction.responses import iter_responses
from analysis.extraction.sites import Site, find_sites
from analysis.snapshots import Snapshot
from analysis.steering.conditions import Conditions, pooled_values, random_units, token_medians

EXTRACTION = Extraction(batch_tokens=512, max_bytes=2**24)
TEXTS = tuple(f"{'sea' if i < 6 else 'dry'} text number {i} {'of waves' if i % 3 else 'here'}" for i in range(14))


@pytest.fixture(scope="module")
def snapshot(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]) -> Snapshot:
    return tiny_snapshot(tiny_xglm)


@pytest.fixture(scope="module")
def concept_set() -> ConceptSet:
    sides = {"sea": torch.arange(6), "odd": torch.arange(1, 14, 2)}
    rest = {name: torch.tensor([i for i in range(14) if i not in side.tolist()]) for name, side in sides.items()}
    pool = ConceptPool("en", TEXTS, tuple(map(str, range(14))), sides, rest)
    return ConceptSet(("en",), ("sea", "odd"), {"en": pool})


@pytest.fixture(scope="module")
def table(snapshot: Snapshot, concept_set: ConceptSet) -> ExpertTable:
    return find_experts(snapshot, concept_set, k=40)


def make(snapshot: Snapshot, table: ExpertTable, concept_set: ConceptSet, **changes: object) -> Conditions:
    options = {"value": "on_p50", "band": None, "seed": 0, "extraction": EXTRACTION}
    return Conditions(snapshot, table, concept_set.pools, **{**options, **changes})  # type: ignore[arg-type]


def flat(forcing: dict, table: ExpertTable) -> list[int]:
    offsets = dict(zip(table.space.sites, table.space.offsets.tolist(), strict=False))
    return sorted(offsets[site] + unit for site, (units, _) in forcing.items() for unit in units.tolist())


def test_experts_next_and_mismatched_are_places_of_the_ranking(
    snapshot: Snapshot, table: ExpertTable, concept_set: ConceptSet
) -> None:
    conditions = make(snapshot, table, concept_set)
    ranked = table.experts.units[0]
    assert flat(conditions.forcing("experts", "sea", "en", 20), table) == sorted(ranked[0, :20].tolist())
    assert flat(conditions.forcing("next", "sea", "en", 20), table) == sorted(ranked[0, 20:40].tolist())
    assert conditions.other_concept("sea") == "odd"
    assert conditions.other_concept("odd") == "sea"


def test_the_mismatched_concept_has_least_in_common_wherever_it_stands_in_the_list(snapshot: Snapshot) -> None:
    """Lists are sorted by meaning: the next concept of "metal" is "steel", on nearly the same sentences."""
    sides = {"metal": torch.arange(6), "steel": torch.arange(1, 7), "sea": torch.arange(8, 14)}
    rest = {name: torch.tensor([i for i in range(14) if i not in side.tolist()]) for name, side in sides.items()}
    pool = ConceptPool("en", TEXTS, tuple(map(str, range(14))), sides, rest)
    concept_set = ConceptSet(("en",), tuple(sides), {"en": pool})
    conditions = make(snapshot, find_experts(snapshot, concept_set, k=10), concept_set)
    assert [conditions.other_concept(name) for name in sides] == ["sea", "sea", "metal"]


def test_random_units_match_the_experts_site_by_site(
    snapshot: Snapshot, table: ExpertTable, concept_set: ConceptSet
) -> None:
    conditions = make(snapshot, table, concept_set)
    experts = conditions.forcing("experts", "sea", "en", 20)
    drawn = conditions.forcing("random", "sea", "en", 20)
    assert {site: len(units) for site, (units, _) in drawn.items()} == {s: len(u) for s, (u, _) in experts.items()}
    assert not set(flat(drawn, table)) & set(flat(experts, table))
    again = make(snapshot, table, concept_set).forcing("random", "sea", "en", 20)
    assert flat(again, table) == flat(drawn, table)
    assert flat(make(snapshot, table, concept_set, seed=1).forcing("random", "sea", "en", 20), table) != flat(
        drawn, table
    )
    texts = TEXTS[:6]
    for responses in iter_responses(snapshot, texts, sorted(drawn)):
        units, values = drawn[responses.site]
        torch.testing.assert_close(values, responses.values[units].quantile(0.5, dim=1))


def test_random_units_of_a_small_site_may_repeat_the_experts() -> None:
    site = Site(0, "mlp.in", "x", 4)
    units = random_units({site: torch.tensor([0, 1, 2])}, [0])[site]
    assert len(set(units.tolist())) == 3


@pytest.mark.parametrize("statistic", ["on_p50", "on_mean", "on_p90"])
def test_pooled_values_equal_those_of_the_expert_table(
    snapshot: Snapshot, table: ExpertTable, concept_set: ConceptSet, statistic: str
) -> None:
    forcing = make(snapshot, table, concept_set, value=statistic).forcing("experts", "sea", "en", 30)
    units = {site: chosen for site, (chosen, _) in forcing.items()}
    measured = pooled_values(snapshot, units, TEXTS[:6], statistic, EXTRACTION)
    in_parts = pooled_values(snapshot, units, TEXTS[:6], statistic, replace(EXTRACTION, max_bytes=6 * 4 * 10))
    for site, (chosen, values) in forcing.items():
        assert torch.equal(measured[site][0], chosen)
        torch.testing.assert_close(measured[site][1], values, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(in_parts[site][1], measured[site][1], atol=1e-5, rtol=1e-4)


def test_token_medians_are_over_content_tokens_only(snapshot: Snapshot) -> None:
    site = find_sites(snapshot.model)[4]
    units = {site: torch.tensor([0, 5, 9])}
    values = token_medians(snapshot, units, TEXTS[:5], Extraction(batch_tokens=64))[site][1]
    seen: list[np.ndarray] = []
    for ids in encode_texts(snapshot.tokenizer, TEXTS[:5]).ids:
        with torch.no_grad(), read_sites(snapshot.model, [site], lambda _, x: seen.append(x[0, 1:].numpy().copy())):
            snapshot.model.base_model(input_ids=torch.tensor([ids]))
    expected = np.median(np.concatenate(seen)[:, [0, 5, 9]], axis=0)
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)
    pooled = pooled_values(snapshot, units, TEXTS[:5], "on_p50", Extraction(batch_tokens=64))[site][1]
    assert (pooled > values).all(), "a median of maxima lies above the typical token"


def test_token_median_is_a_value_of_every_condition(
    snapshot: Snapshot, table: ExpertTable, concept_set: ConceptSet
) -> None:
    conditions = make(snapshot, table, concept_set, value="token_median")
    for name in ("experts", "next", "random"):
        forcing = conditions.forcing(name, "sea", "en", 10)
        units = {site: chosen for site, (chosen, _) in forcing.items()}
        for site, (_, values) in token_medians(snapshot, units, TEXTS[:6], EXTRACTION).items():
            torch.testing.assert_close(forcing[site][1], values)


def test_a_band_of_blocks_keeps_their_units_only(
    snapshot: Snapshot, table: ExpertTable, concept_set: ConceptSet
) -> None:
    all_of_them = make(snapshot, table, concept_set).forcing("experts", "odd", "en", 40)
    upper = make(snapshot, table, concept_set, band=(1, 1)).forcing("experts", "odd", "en", 40)
    assert set(upper) == {site for site in all_of_them if site.layer == 1} < set(all_of_them)
    assert set(make(snapshot, table, concept_set, band=(0, 1)).forcing("experts", "odd", "en", 40)) == set(all_of_them)
    with pytest.raises(ValueError, match=r"no expert of 'sea' in 'en' lies in blocks \(7, 9\); widen the band"):
        make(snapshot, table, concept_set, band=(7, 9)).forcing("experts", "sea", "en", 40)
