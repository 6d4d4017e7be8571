"""What common sentences take off R is found where it is planted, and is nothing where there are none."""

from __future__ import annotations

import numpy as np
import torch

from analysis.concepts.concept_set import ConceptSet
from studies.first_light.common_sentences import label_cosines, without_common
from tests.analysis.experts.test_heldout import reuse_negatives
from tests.benchmarks.bench_planted import SENTENCES, make_network, search


def mean_of(concept_set: ConceptSet, rng: np.random.Generator) -> tuple[float, float]:
    """R of the first two languages as it is, and without common sentences."""
    torch.set_num_threads(1)
    found = search(make_network("similarity", concept_set, np.zeros(SENTENCES), rng), concept_set)
    assert found.halves is not None
    both = [
        without_common(found.halves.correlation[row, :, column], label_cosines(concept_set)[row, :, column])
        for row, column in ((0, 1), (1, 0))
    ]
    as_is, without, _ = np.mean(both, axis=0)
    return float(as_is), float(without)


def test_what_common_sentences_take_off_is_given_back() -> None:
    """No unit knows a concept, so R without them is 0; `tests/analysis/experts` has what R is with them."""
    rng = np.random.default_rng(0)
    found = np.array([mean_of(reuse_negatives(rng, halves=False), rng) for _ in range(12)])
    error = found.std(0) / np.sqrt(len(found))
    assert found[:, 0].mean() < -4 * error[0]
    assert abs(found[:, 1].mean()) < 3 * error[1]


def test_labels_have_no_cosine_where_every_sentence_has_one_half() -> None:
    rng = np.random.default_rng(1)
    apart, mixed = (label_cosines(reuse_negatives(rng, halves=halves)) for halves in (True, False))
    assert not apart.any()
    other = ~np.eye(12, dtype=bool)
    assert mixed[0, :, 1][other].mean() > 0.05
    assert not mixed[0, :, 1][~other].any(), "a concept shares no sentence with itself"


def test_the_intercept_is_what_was_planted() -> None:
    rng = np.random.default_rng(2)
    cosines = rng.uniform(0, 0.1, size=(20, 20))
    agreement = 0.02 + 0.5 * cosines + 0.001 * rng.normal(size=(20, 20))
    np.fill_diagonal(agreement, 0.1)
    agreement[0, 1] = np.nan  # concepts of one group
    as_is, without, slope = without_common(agreement, cosines)
    assert abs(without - 0.08) < 0.001
    assert abs(slope - 0.5) < 0.02
    assert abs(as_is - (0.08 - 0.5 * cosines[~np.eye(20, dtype=bool)].mean())) < 0.001
