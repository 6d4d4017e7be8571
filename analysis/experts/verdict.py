"""Does the trained network share concepts across languages more than random ones? One network against the band.

The pre-registered statistic is `rank_transfer`, over all pairs of languages and over those without a common script.
"""

from __future__ import annotations

import pandas as pd

from analysis.results import ResultTable
from analysis.statistics import Contrast, against_band


def verdict(
    results: ResultTable,
    analysis: str,
    *,
    metric: str = "rank_transfer",
    condition: str | None = None,
    step: int | None = None,
) -> Contrast | None:
    """A metric at a step (none means the last) against the run's random networks, paired over clusters of concepts.

    None where the step, two random networks or two concepts are missing.
    """
    steps = [place for place, name in results.entries() if name == analysis]
    band = results.null_band(analysis)
    if not steps or band.empty:
        return None
    step = steps[-1] if step is None else step
    own = _by_concept(results.frame([analysis]), metric, condition)
    own = own[own["step"] == step].set_index("concept")["value"]
    networks = _by_concept(band, metric, condition).pivot(index="network", columns="concept", values="value")
    concepts = [concept for concept in own.index if concept in networks.columns]
    networks = networks[concepts].dropna()
    if len(concepts) < 2 or len(networks) < 2:
        return None
    cluster_of = _clusters(results, analysis, step)
    clusters = pd.Series([cluster_of.get(concept, concept) for concept in concepts])
    return against_band(own[concepts].to_numpy(), networks.to_numpy(), clusters.astype(str).to_numpy())


def _by_concept(frame: pd.DataFrame, metric: str, condition: str | None) -> pd.DataFrame:
    rows = frame[(frame["metric"] == metric) & frame["concept"].notna() & frame["language"].isna()]
    return rows[rows["condition"].isna()] if condition is None else rows[rows["condition"] == condition]


def _clusters(results: ResultTable, analysis: str, step: int) -> dict[str, int]:
    """Concept to cluster, from the table of experts; empty if it has none."""
    try:
        table = results.attachment(step, analysis, "experts")
    except FileNotFoundError:
        return {}
    if "cluster" not in table.column_names:
        return {}
    pairs = table.select(["concept", "cluster"]).group_by(["concept", "cluster"]).aggregate([])
    return dict(zip(pairs["concept"].to_pylist(), pairs["cluster"].to_pylist(), strict=True))
