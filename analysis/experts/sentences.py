"""The sentences that move a unit most, as people look at neurons: for the experts that most languages have in common.

The best units of a concept are chosen from the table of experts, and one more pass over their sites keeps, for every
unit and language, the texts with the largest response, of some positives of every concept (reading all text would cost
half as much as finding the experts). Called by `analysis.measures.overlap`, for the report.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from analysis.concepts.concept_set import ConceptSet
from analysis.experts.table import ExpertTable
from analysis.extraction.options import Extraction
from analysis.extraction.responses import iter_responses
from analysis.snapshots import Snapshot

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


def common_units(table: ExpertTable, concept: int, count: int = UNITS) -> np.ndarray:
    """Flat ids (at most `count`) of the units that are experts of a concept in most languages, then by mean AP."""
    units = table.experts.units[:, concept].reshape(-1)  # (L * K,)
    ap = table.experts.ap[:, concept].mean(axis=-1).reshape(-1)  # over the languages in which it is read
    found, first, counts = np.unique(units, return_index=True, return_counts=True)
    best: np.ndarray = found[np.lexsort((found, -ap[first], -counts))][:count]
    return best


def moving_sentences(
    snapshot: Snapshot, concept_set: ConceptSet, table: ExpertTable, extraction: Extraction, count: int
) -> pa.Table:
    """Per concept, unit and language the `count` texts with the largest response, largest first.

    Read are up to `POSITIVES` positives of every concept, spread over the keys.

    Returns:
        concept, unit (flat id, as in the table of experts), language, response, positive (whether the text is labelled
        with the concept), text.

    Raises:
        ValueError: see `iter_responses`.
    """
    wanted: dict[int, list[int]] = {}
    for place in range(len(table.concepts)):
        for unit in common_units(table, place).tolist():
            wanted.setdefault(unit, []).append(place)
    ids = np.array(sorted(wanted))
    of_site = table.space.site_indices(ids)
    sites = [table.space.sites[index] for index in np.unique(of_site)]
    offset = dict(zip(table.space.sites, table.space.offsets.tolist(), strict=False))
    pools = [concept_set.pools[language] for language in table.languages]
    read = [sorted({index for found in pool.positives.values() for index in _spread(found)}) for pool in pools]
    texts = [pool.texts[place] for pool, places in zip(pools, read, strict=True) for place in places]
    sizes = [len(places) for places in read]
    rows: dict[tuple[int, int], list[dict[str, object]]] = {}
    for responses in iter_responses(snapshot, texts, sites, extraction):
        first = offset[responses.site] + responses.first_unit
        for unit in ids[(ids >= first) & (ids < first + len(responses.values))].tolist():
            parts: Sequence[torch.Tensor] = torch.split(responses.values[unit - first], sizes)
            for pool, places, values in zip(pools, read, parts, strict=True):
                top = values.topk(min(count, len(values)))
                best = [places[index] for index in top.indices.tolist()]
                for concept in wanted[unit]:
                    positives = set(pool.positives[table.concepts[concept]].tolist())
                    rows.setdefault((concept, unit), []).extend(
                        {
                            "concept": table.concepts[concept],
                            "unit": unit,
                            "language": pool.language,
                            "response": value,
                            "positive": place in positives,
                            "text": str(pool.texts[place]),
                        }
                        for value, place in zip(top.values.tolist(), best, strict=True)
                    )
    return pa.Table.from_pylist([row for key in sorted(rows) for row in rows[key]], SCHEMA)


def _spread(places: torch.Tensor) -> list[int]:
    """At most `POSITIVES` of the places, evenly."""
    chosen = np.unique(np.linspace(0, len(places) - 1, min(POSITIVES, len(places))).round().astype(int))
    found: list[int] = places[chosen].tolist()
    return found
