"""The sentences that move a unit most, as people look at neurons: for the experts that most languages have in common.

While the experts are searched, the largest responses of every unit in every language are kept, among some positives of
every concept; the units that are shown are chosen afterwards from the table of experts. Called by
`analysis.measures.overlap`, for the report.

Shapes:  U units of one site   A all units   N texts   m responses that are kept
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from analysis.concepts.concept_set import ConceptSet
from analysis.experts.table import ExpertTable

UNITS = 5
"""Units of a concept."""
POSITIVES = 20
"""Of each concept and language that are read."""
SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("unit", pa.int64()),
        ("language", pa.string()),
        ("response", pa.float32()),
        ("positive", pa.bool_()),
        ("text", pa.string()),
    ]
)


def common_units(table: ExpertTable, concept: int) -> np.ndarray:
    """Flat ids (at most `UNITS`) of the units that are experts of a concept in most languages, then by mean AP."""
    units = table.experts.units[:, concept].reshape(-1)  # (L * K,)
    ap = table.experts.ap[:, concept].mean(axis=-1).reshape(-1)  # over the languages in which it is read
    found, first, counts = np.unique(units, return_index=True, return_counts=True)
    best: np.ndarray = found[np.lexsort((found, -ap[first], -counts))][:UNITS]
    return best


class LargestResponses:
    """The `count` largest responses of every unit in every language, filled site by site.

    Looked at are up to `POSITIVES` positives of every concept, spread over the keys.
    """

    def __init__(self, concept_set: ConceptSet, count: int) -> None:
        pools = [concept_set.pools[language] for language in concept_set.languages]
        self._looked_at = [
            torch.tensor(sorted({index for found in pool.positives.values() for index in _spread(found)}))
            for pool in pools
        ]
        self._count = count
        self._found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in pools]

    def add(self, values: Sequence[Tensor]) -> None:
        """Responses (U, N) of the next units to the texts of each language."""
        for part, places, found in zip(values, self._looked_at, self._found, strict=True):
            top = part[:, places.to(part.device)].topk(min(self._count, len(places)))
            found.append((top.values.cpu(), places[top.indices.cpu()]))

    def of(self, language: int) -> tuple[Tensor, Tensor]:
        """Responses (A, m), largest first, and the texts (A, m) in the pool of the language."""
        values, places = zip(*self._found[language], strict=True)
        return torch.cat(values), torch.cat(places)


def moving_sentences(concept_set: ConceptSet, table: ExpertTable, largest: LargestResponses) -> pa.Table:
    """Per concept, common unit and language the texts with the largest response, largest first.

    Returns:
        concept, unit (flat id, as in the table of experts), language, response, positive (whether the text is labelled
        with the concept), text.
    """
    pools = [concept_set.pools[language] for language in table.languages]
    found = [largest.of(language) for language in range(len(pools))]
    rows = []
    for number, concept in enumerate(table.concepts):
        positives = [set(pool.positives[concept].tolist()) for pool in pools]
        for unit in sorted(common_units(table, number).tolist()):
            for pool, (values, places), members in zip(pools, found, positives, strict=True):
                rows += [
                    {
                        "concept": concept,
                        "unit": unit,
                        "language": pool.language,
                        "response": value,
                        "positive": place in members,
                        "text": str(pool.texts[place]),
                    }
                    for value, place in zip(values[unit].tolist(), places[unit].tolist(), strict=True)
                ]
    return pa.Table.from_pylist(rows, SCHEMA)


def _spread(places: Tensor) -> list[int]:
    """At most `POSITIVES` of the places, evenly."""
    chosen = np.unique(np.linspace(0, len(places) - 1, min(POSITIVES, len(places))).round().astype(int))
    found: list[int] = places[chosen].tolist()
    return found
