"""The sentences beside a unit are those with the largest response, and a unit wired to a concept shows the concept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedModel

from analysis.concepts.concept_set import ConceptPool, ConceptSet
from analysis.experts.sentences import UNITS, LargestResponses, common_units, moving_sentences
from analysis.experts.table import find_experts
from analysis.extraction.options import Extraction
from analysis.extraction.responses import iter_responses
from analysis.snapshots import Snapshot

EXTRACTION = Extraction(pool="max")


def concept_set() -> ConceptSet:
    """Two languages; sentences with `qq` carry the concept fire, those with `jj` water."""
    generator = np.random.default_rng(0)
    pools = {}
    for language, letters in (("de", "abcdefgh"), ("ru", "абвгдежз")):
        texts = ["".join(generator.choice(list(letters), size=9)) for _ in range(36)]
        marked = [text + ("qq" if place < 12 else "jj" if place < 24 else "") for place, text in enumerate(texts)]
        yes = {"fire": torch.arange(12), "water": torch.arange(12, 24)}
        no = {"fire": torch.arange(12, 36), "water": torch.cat([torch.arange(12), torch.arange(24, 36)])}
        pools[language] = ConceptPool(language, tuple(marked), tuple(f"s{n:02d}" for n in range(36)), yes, no)
    return ConceptSet(("de", "ru"), ("fire", "water"), pools, (0, 1))


def test_they_are_the_largest_responses_of_units_that_most_languages_have(
    tiny_snapshot: Callable[..., Snapshot], tiny_xglm: PreTrainedModel
) -> None:
    snapshot, concepts = tiny_snapshot(tiny_xglm), concept_set()
    largest = LargestResponses(concepts, count=3)
    table = find_experts(snapshot, concepts, k=20, extraction=EXTRACTION, listener=largest.add)
    found = moving_sentences(concepts, table, largest).to_pandas()
    assert len(found) == 2 * UNITS * 2 * 3
    experts = table.to_arrow().to_pandas()
    for place, concept in enumerate(("fire", "water")):
        units = common_units(table, place).tolist()
        assert {*found[found["concept"] == concept]["unit"]} == {*units}
        counts = experts[experts["concept"] == concept].groupby("unit")["language"].nunique()
        assert min(counts[unit] for unit in units) >= sorted(counts)[-UNITS]
    pool = concepts.pools["ru"]
    responses = {r.site: r.values for r in iter_responses(snapshot, pool.texts, table.space.sites, EXTRACTION)}
    for (concept, unit), rows in found[found["language"] == "ru"].groupby(["concept", "unit"]):
        site = table.space.sites[int(table.space.site_indices(np.array([unit]))[0])]
        values = responses[site][unit - int(table.space.offsets[table.space.sites.index(site)])]
        best = values[:24].argsort(descending=True)[:3].tolist()  # the others are positives of no concept
        np.testing.assert_allclose(rows["response"], values[best].numpy(), rtol=1e-5)
        places = [pool.texts.index(text) for text in rows["text"]]  # equal responses may come in any order
        np.testing.assert_allclose(rows["response"], values[places].numpy(), rtol=1e-5)
        assert [place in pool.positives[concept].tolist() for place in places] == rows["positive"].tolist()


def test_a_unit_that_knows_the_concept_is_moved_by_it(
    tiny_snapshot: Callable[..., Snapshot], tiny_xglm: PreTrainedModel
) -> None:
    """The mark is the last token, so some units of the random network read it without fail."""
    snapshot, concepts = tiny_snapshot(tiny_xglm), concept_set()
    extraction = Extraction(pool="last")
    largest = LargestResponses(concepts, count=2)
    table = find_experts(snapshot, concepts, k=20, extraction=extraction, listener=largest.add)
    found = moving_sentences(concepts, table, largest)
    assert all(found["positive"].to_pylist())
