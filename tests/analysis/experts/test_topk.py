"""The running top-K equals sorting everything at once, ties by unit, and keeps what belongs to each unit."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.experts.topk import TopUnits


@pytest.mark.parametrize("k", [1, 7, 60])
def test_running_top_equals_sorting_all(k: int) -> None:
    generator = np.random.default_rng(0)
    scores = np.round(generator.random((5, 60)), 1).astype(np.float32)  # many ties
    top, bare = TopUnits(5, k), TopUnits(5, k)
    for first in range(0, 60, 9):
        part = scores[:, first : first + 9]
        top.update(
            part,
            first,
            lambda groups, places, part=part, first=first: {"id": first + places, "score": part[groups, places]},
        )
        bare.update(part, first)
    order = np.lexsort((np.broadcast_to(np.arange(60), scores.shape), -scores))[:, :k]
    assert np.array_equal(top.units, order)
    assert np.array_equal(bare.units, order)
    assert np.array_equal(top.payload["id"], order)
    expected = np.take_along_axis(scores, order, axis=1)
    assert np.array_equal(top.payload["score"], expected)
    assert np.array_equal(top.scores, expected)


def test_more_units_than_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="flat ids"):
        TopUnits(1, 1).update(np.zeros((1, 2), dtype=np.float32), 2**32 - 2)
