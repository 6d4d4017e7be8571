"""Effect against control in one table a step."""

from __future__ import annotations

import pandas as pd

from analysis.report.tables import Table

COLUMNS = (
    ("concept_hit", "names it"),
    ("concept_in_source_language", "in source lang."),
    ("concept_in_other_language", "in other lang."),
    ("concept_hit_experts", "units find it"),
    ("output_in_source_language", "writes source lang."),
    ("bits_per_byte", "bits / byte"),
)
"""Metrics of the closing table. Naming the concept "in" a language means that the text is written in it, too."""


def effects(frame: pd.DataFrame, name: str) -> list[Table]:
    """For every step the overall numbers of each condition."""
    tables = []
    fields = ["layer", "concept", "language", "other_language", "seed"]
    for step, rows in frame.groupby("step", sort=True):
        overall = rows[rows[fields].isna().all(axis=1)].set_index(["kind", "metric"])
        columns = [column for column in COLUMNS if column[0] in overall.index.get_level_values("metric")]
        kinds = overall.index.get_level_values("kind").dropna().unique()
        lines = [
            (str(kind), *(cell for metric, _ in columns for cell in _cells(overall, str(kind), metric)))
            for kind in sorted(kinds, key=_order)
        ]
        accuracy = rows[(rows["metric"] == "check_accuracy") & rows["language"].isna()]["value"]
        note = (
            ""
            if accuracy.empty
            else (
                "In source (other) lang.: written in that language, with a word of it. Units find it: the concept's "
                f"units; on held-out sentences their balanced accuracy is {accuracy.iloc[0]:.2f} (chance 0.5)."
            )
        )
        tables.append(
            Table(
                title=f"{name}, step {step}: share of texts that name the concept, against controls",
                header=("condition", *(title for metric, heading in columns for title in _titles(metric, heading))),
                rows=tuple(lines),
                note=note,
            )
        )
    return tables


def _order(kind: str) -> tuple[int, str]:
    """No intervention first, then by K, the experts before their controls."""
    condition, _, k = kind.partition("@")
    return int(k or 0), "" if condition == "experts" else condition


def _titles(metric: str, title: str) -> tuple[str, ...]:
    return (title, "95 %") if metric == "concept_hit" else (title,)


def _cells(overall: pd.DataFrame, kind: str, metric: str) -> tuple[str, ...]:
    if (kind, metric) not in overall.index:
        return ("",) * len(_titles(metric, ""))
    row = overall.loc[(kind, metric)]
    if metric == "concept_hit":
        return f"{row['value']:.3f}", f"{row['low']:.2f}-{row['high']:.2f}"
    return (f"{row['value']:.2f}" if metric == "bits_per_byte" else f"{row['value']:.3f}",)
