"""Experts equal a brute-force search over everything; planted units are found in the languages that have them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers import PreTrainedModel

import analysis.experts.table
from analysis.concepts.concept_set import ConceptPool, ConceptSet
from analysis.experts.average_precision import settle_ties
from analysis.experts.table import ExpertTable, find_experts, forcing_of, resolve_k
from analysis.extraction.hooks import force_units
from analysis.extraction.options import Extraction
from analysis.extraction.responses import Responses, iter_responses
from analysis.extraction.sites import UnitSpace, find_sites
from analysis.snapshots import Snapshot

LANGUAGES = ("de", "en", "fr")
CONCEPTS = ("fire", "water", "wood")
NUM_TEXTS = 120


def make_concepts(parallel: bool = True) -> ConceptSet:
    """Three languages with the same concepts; sentences are translations of each other unless told otherwise."""
    pools = {}
    for place, language in enumerate(LANGUAGES):
        order = np.random.default_rng(0 if parallel else place).permutation(NUM_TEXTS)
        yes = {name: torch.from_numpy(np.sort(order[20 * c : 20 * c + 20])) for c, name in enumerate(CONCEPTS)}
        no = {
            name: torch.from_numpy(np.setdiff1d(np.arange(NUM_TEXTS), yes[name])[c:]) for c, name in enumerate(CONCEPTS)
        }
        prefix = "" if parallel else language
        texts = tuple(f"{language} text {index}" for index in range(NUM_TEXTS))
        pools[language] = ConceptPool(language, texts, tuple(f"{prefix}{i}" for i in range(NUM_TEXTS)), yes, no)
    return ConceptSet(LANGUAGES, CONCEPTS, pools)


@pytest.fixture
def stream(
    monkeypatch: pytest.MonkeyPatch, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> Callable[..., Snapshot]:
    """`stream(values, part)` lets `find_experts` see made-up responses (A, 3 N), `part` units at a time."""

    def install(values: Tensor, part: int = 10_000) -> Snapshot:
        space = UnitSpace(find_sites(tiny_xglm))
        assert values.shape == (space.num_units, len(LANGUAGES) * NUM_TEXTS)

        def fake(*_: object, **__: object) -> Iterator[Responses]:
            for site, offset in zip(space.sites, space.offsets.tolist(), strict=False):
                for first in range(0, site.num_units, part):
                    last = min(first + part, site.num_units)
                    yield Responses(site, values[offset + first : offset + last], first)

        monkeypatch.setattr(analysis.experts.table, "iter_responses", fake)
        return tiny_snapshot(tiny_xglm)

    return install


def random_values(model: PreTrainedModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(UnitSpace(find_sites(model)).num_units, len(LANGUAGES) * NUM_TEXTS, generator=generator)
    values[::3] = values[::3].relu()  # ties
    values[5] = 1.0
    return values


def brute_force_ap(values: Tensor, yes: Tensor, no: Tensor) -> np.ndarray:
    """AP (U,) by its definition: the precision at every positive, ties counted in, and their mean."""
    found = []
    for row in values.numpy():
        hits, misses = (np.array([(row[side] >= row[one]).sum() for one in yes]) for side in (yes, no))
        found.append((hits / (hits + misses)).mean())
    return np.array(found)


def test_experts_equal_brute_force(stream: Callable[..., Snapshot], tiny_xglm: PreTrainedModel) -> None:
    values, concepts, k = random_values(tiny_xglm), make_concepts(), 25
    table = find_experts(stream(values), concepts, k=k, halves=True, shuffles=2, deepest=60)
    scores = {}
    for which, labelling in (("all", concepts), ("0", concepts.half(0)), ("1", concepts.half(1))):
        for place, language in enumerate(LANGUAGES):
            pool = labelling.pools[language]
            part = values[:, place * NUM_TEXTS : (place + 1) * NUM_TEXTS]
            sides = [(pool.positives[name], pool.negatives[name]) for name in CONCEPTS]
            scores[which, place] = np.stack([brute_force_ap(settle_ties(part), yes, no) for yes, no in sides])
    ap = np.stack([scores["all", place] for place in range(3)])
    for place, language in enumerate(LANGUAGES):
        part = values[:, place * NUM_TEXTS : (place + 1) * NUM_TEXTS].numpy()
        for c, name in enumerate(CONCEPTS):
            order = np.lexsort((np.arange(ap.shape[-1]), -np.round(ap[place, c], 6)))[:k]
            found = table.experts.units[place, c]
            assert set(found) == set(order)
            rest = [other for other in range(3) if other != c]
            np.testing.assert_allclose(table.experts.ap[place, c], ap[:, c, found].T, atol=1e-6)
            np.testing.assert_allclose(
                table.experts.ap_of_others[place, c], ap[:, rest][:, :, found].mean(1).T, atol=1e-6
            )
            labelled = torch.cat([concepts.pools[language].positives[name], concepts.pools[language].negatives[name]])
            is_positive = np.arange(len(labelled)) < 20
            rows = settle_ties(torch.from_numpy(part[found]))[:, labelled].numpy()
            areas = [roc_auc_score(is_positive, row) for row in rows]
            np.testing.assert_allclose(table.auroc[place, c], areas, atol=1e-6)
            positives = part[found][:, concepts.pools[language].positives[name]]
            np.testing.assert_allclose(table.on_p50[place, c], np.median(positives, axis=1), rtol=1e-6)
            np.testing.assert_allclose(table.on_mean[place, c], positives.mean(1), rtol=1e-5)
            np.testing.assert_allclose(table.on_p90[place, c], np.percentile(positives, 90, axis=1), rtol=1e-5)
            negatives = part[found][:, concepts.pools[language].negatives[name]]
            np.testing.assert_allclose(table.off_mean[place, c], negatives.mean(1), rtol=1e-4, atol=1e-6)
            assert table.halves is not None
            for which, half in enumerate(table.halves.experts):
                own, other = scores[str(which), place][c], scores[str(1 - which), place][c]
                assert own[half.units[place, c]].min() >= np.sort(own)[-k] - 1e-6
                np.testing.assert_allclose(half.ap[place, c, :, place], other[half.units[place, c]], atol=1e-6)
                assert np.array_equal(table.halves.deep[which][place, c, :k], half.units[place, c])
                assert own[table.halves.deep[which][place, c]].min() >= np.sort(own)[-60] - 1e-6
    assert len(table.shuffled) == 2
    assert table.shuffled_ap.shape == (2, 3, 3, k)
    assert (np.diff(table.shuffled_ap) <= 0).all()
    assert table.halves is not None
    correlation = np.zeros((3, 3))
    space = table.space
    for first, last in pairwise(space.offsets.tolist()):
        one, other = (np.stack([scores[which, place][:, first:last] for place in range(3)]) for which in ("0", "1"))
        for place in range(3):
            for c in range(3):
                found = spearmanr(np.round(one[place, 0], 5), np.round(other[place, c], 5)).statistic
                correlation[place, c] += (last - first) / space.num_units * found
    np.testing.assert_allclose(table.halves.correlation[np.arange(3), 0, np.arange(3)], correlation, atol=0.02)
    np.testing.assert_allclose(table.prevalence[0], [20 / 120, 20 / 119, 20 / 118])


def test_sites_in_parts_give_the_same_experts(stream: Callable[..., Snapshot], tiny_xglm: PreTrainedModel) -> None:
    values = random_values(tiny_xglm)
    whole = find_experts(stream(values), make_concepts(), k=30, halves=True)
    parts = find_experts(stream(values, part=7), make_concepts(), k=30, halves=True)
    for name in ("units", "ap", "ap_of_others"):
        assert np.array_equal(getattr(whole.experts, name), getattr(parts.experts, name))
    assert np.array_equal(whole.on_p90, parts.on_p90)
    assert np.array_equal(whole.auroc, parts.auroc)
    assert whole.halves is not None
    assert parts.halves is not None
    assert np.array_equal(whole.halves.correlation, parts.halves.correlation), "ranks are those of the whole site"


def test_planted_unit_ranks_first_where_it_was_planted(
    stream: Callable[..., Snapshot], tiny_xglm: PreTrainedModel
) -> None:
    values, concepts = random_values(tiny_xglm), make_concepts()
    for place in (0, 1):
        yes = concepts.pools[LANGUAGES[place]].positives["water"]
        values[300, place * NUM_TEXTS + yes] = 10.0
    table = find_experts(stream(values), concepts, k=5)
    assert table.experts.units[0, 1, 0] == table.experts.units[1, 1, 0] == 300
    assert table.experts.ap[0, 1, 0, :2].tolist() == [1.0, 1.0]
    assert 300 not in table.experts.units[2, 1]
    assert 300 not in table.experts.units[:, [0, 2]]


def test_shuffled_labels_find_nothing(stream: Callable[..., Snapshot], tiny_xglm: PreTrainedModel) -> None:
    """A unit that knows the concept in all languages is no expert by shuffled labels, and overlap is at chance."""
    values, concepts = random_values(tiny_xglm), make_concepts(parallel=False)
    for place, language in enumerate(LANGUAGES):
        values[:40, place * NUM_TEXTS + concepts.pools[language].positives["fire"]] += 4.0
    k, num_units = 40, values.shape[0]
    table = find_experts(stream(values), concepts, k=k, shuffles=20)
    assert len(set(table.experts.units[0, 0]) & set(table.experts.units[1, 0])) > 35
    shared = [
        len(set(units[one, c]) & set(units[other, c]))
        for units in table.shuffled
        for one, other in ((0, 1), (0, 2), (1, 2))
        for c in range(3)
    ]
    chance = k * k / num_units
    # 180 nearly independent counts with variance below the mean: five standard errors.
    assert abs(np.mean(shared) - chance) < 5 * (chance / len(shared)) ** 0.5


def test_wired_unit_is_found_in_the_model_itself(
    tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    """The byte q means fire in both languages; j means water in one and z in the other, read by different units."""
    model = copy.deepcopy(tiny_xglm)
    letters = {"q": (0, 3), "j": (1, 17), "z": (2, 40)}
    tokenizer = tiny_snapshot(model).tokenizer
    with torch.no_grad():
        model.model.embed_tokens.weight[:, :3] = 0
        for block in model.model.layers:
            for linear in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj, block.fc1):
                linear.weight[:, :3] = 0
            for linear in (block.self_attn.out_proj, block.fc2):
                linear.weight[:3] = 0
                linear.bias[:3] = 0
        for letter, (dimension, unit) in letters.items():
            model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids(letter), dimension] = 1.0
            model.model.layers[0].fc1.weight[unit] = 0
            model.model.layers[0].fc1.weight[unit, dimension] = 10.0
    pools = {}
    for language, water in (("aa", "j"), ("bb", "z")):
        plain = [f"{language} {number} abc" for number in range(30)]
        texts = tuple(
            text + (" q" if index < 12 else f" {water}" if index < 24 else "") for index, text in enumerate(plain)
        )
        yes = {"fire": torch.arange(12), "water": torch.arange(12, 24)}
        no = {"fire": torch.arange(12, 30), "water": torch.cat([torch.arange(12), torch.arange(24, 30)])}
        pools[language] = ConceptPool(language, texts, tuple(map(str, range(30))), yes, no)
    table = find_experts(
        tiny_snapshot(model), ConceptSet(("aa", "bb"), ("fire", "water"), pools), site_set=["mlp.in"], k=1
    )
    assert table.experts.units[:, 0, 0].tolist() == [3, 3]
    assert table.experts.units[:, 1, 0].tolist() == [17, 40]
    assert table.experts.ap[0, 0, 0].tolist() == [1.0, 1.0]
    assert table.experts.ap[0, 1, 0, 0] == 1.0 > table.experts.ap[0, 1, 0, 1]
    forcing = forcing_of(table, "fire", "aa")
    ((site, (units, values)),) = forcing.items()
    assert (site.layer, site.kind, units.tolist()) == (0, "mlp.in", [3])
    assert values.item() == pytest.approx(float(table.on_p50[0, 0, 0]))
    with torch.no_grad(), force_units(model, forcing):
        model(torch.tensor([[2, 5, 6]]))


@pytest.mark.parametrize("name", ["tiny_xglm", "tiny_bloom", "tiny_llama"])
def test_batching_and_memory_bound_do_not_change_experts(
    name: str, request: pytest.FixtureRequest, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    model = request.getfixturevalue(name)
    small = Extraction(batch_tokens=200, max_bytes=20 * 360 * 4)
    one = find_experts(tiny_snapshot(model), make_concepts(), k=10)
    other = find_experts(tiny_snapshot(model), make_concepts(), k=10, extraction=small)
    same = np.mean([len(set(a) & set(b)) for a, b in zip(
        one.experts.units.reshape(-1, 10), other.experts.units.reshape(-1, 10), strict=True)])  # fmt: skip
    # Nearly all texts share tokens, hence ties; rarely a rounding error lies at the edge of two steps of the grid.
    assert same > 9.8


def test_table_tells_fused_units_apart(tiny_bloom: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]) -> None:
    frame = find_experts(tiny_snapshot(tiny_bloom), make_concepts(), k=200).to_arrow().to_pandas()
    assert len(frame) == 3 * 3 * 200
    assert {"attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out"} == set(frame.kind)
    space = UnitSpace(find_sites(tiny_bloom))
    for row in frame.sample(20, random_state=0).itertuples():
        number = int(space.site_indices(row.unit))
        assert (row.module, row.layer) == (space.sites[number].module, space.sites[number].layer)
        assert row.index == row.unit - space.offsets[number]
        assert row.ap == getattr(row, f"ap_{row.language}")
    for _, group in frame.groupby(["language", "concept"]):
        assert group.ap.is_monotonic_decreasing


def test_number_of_experts_is_checked(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]) -> None:
    assert resolve_k(500, None, 1000) == 500
    assert resolve_k(500, 0.01, 1000) == 10
    assert resolve_k(500, 1e-9, 1000) == 1
    for k, share, match in (
        (0, None, "at least one"),
        (1001, None, "only 1000 units"),
        (5, 0.0, "above 0"),
        (5, 1.5, "at most 1"),
    ):
        with pytest.raises(ValueError, match=match):
            resolve_k(k, share, 1000)
    with pytest.raises(ValueError, match="k=500 experts, but the model has only 448 units"):
        find_experts(tiny_snapshot(tiny_xglm), make_concepts())


def test_forcing_takes_bands_of_ranks_and_refuses_what_is_not_there(
    stream: Callable[..., Snapshot], tiny_xglm: PreTrainedModel
) -> None:
    table: ExpertTable = find_experts(stream(random_values(tiny_xglm)), make_concepts(), k=12)
    space = table.space

    def flat(**options: object) -> set[int]:
        forcing = forcing_of(table, "wood", "fr", **options)  # type: ignore[arg-type]
        return {
            int(space.offsets[space.sites.index(site)]) + unit
            for site, (units, _) in forcing.items()
            for unit in units.tolist()
        }

    chosen = table.experts.units[2, 2].tolist()
    assert flat() == set(chosen)
    assert flat(k=4) == set(chosen[:4])
    assert flat(k=4, first=4) == set(chosen[4:8])
    for bad in ({"k": 13}, {"k": 0}, {"k": 6, "first": 7}, {"first": -1}):
        with pytest.raises(ValueError, match="the table holds 12"):
            forcing_of(table, "wood", "fr", **bad)
    for concept, language, value in (("x", "fr", "on_p50"), ("wood", "es", "on_p50"), ("wood", "fr", "median")):
        with pytest.raises(ValueError, match="no (concept|language|forcing value)"):
            forcing_of(table, concept, language, value=value)


def test_shuffles_keep_translations_together(stream: Callable[..., Snapshot]) -> None:
    shuffled = make_concepts().shuffled(3)
    pools = shuffled.pools
    for concept in CONCEPTS:
        assert torch.equal(pools["de"].positives[concept], pools["fr"].positives[concept])
        assert len(pools["de"].positives[concept]) == 20
        both = torch.cat([pools["de"].positives[concept], pools["de"].negatives[concept]])
        original = make_concepts().pools["de"]
        labelled = torch.cat([original.positives[concept], original.negatives[concept]])
        assert torch.equal(both.sort().values, labelled.sort().values)
    other = make_concepts().shuffled(4).pools["de"]
    assert not torch.equal(pools["de"].positives["fire"], other.positives["fire"])


def test_stream_sees_texts_of_all_languages_together(
    tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    """Responses of a language do not depend on which other languages are measured."""
    concepts = make_concepts()
    sites = find_sites(tiny_xglm, ["mlp.out"])
    alone = next(iter_responses(tiny_snapshot(tiny_xglm), concepts.pools["en"].texts, sites)).values
    texts = [text for language in LANGUAGES for text in concepts.pools[language].texts]
    together = next(iter_responses(tiny_snapshot(tiny_xglm), texts, sites)).values
    torch.testing.assert_close(alone, together[:, NUM_TEXTS : 2 * NUM_TEXTS], rtol=1e-4, atol=1e-5)
