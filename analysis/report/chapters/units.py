"""The units of a concept: where each of them is, its AP in every language, and the sentences that move it most."""

from __future__ import annotations

import pandas as pd

from analysis.report.headlines import layer_label
from analysis.report.page import Page, Unit, Units
from analysis.report.run import RunRecord

UNITS = 12
"""Units of a concept on the page; all are in the attachment `experts`."""


def add_units(page: Page, record: RunRecord, name: str) -> None:
    """The experts at the last usable step that has them, those first which most languages have in common."""
    for step in reversed(record.usable_steps):
        try:
            experts = record.table.attachment(step, name, "experts").to_pandas()
        except FileNotFoundError:
            continue
        page.heading(f"Units of a concept, step {step}")
        page.paragraph(
            f"The {UNITS} experts that most languages have in common: units whose activation tells sentences with the "
            "concept from others. Beside each its precision (AP) by language, and the sentences of all concepts "
            "that move it most; the shaded ones are labelled with this one."
        )
        page.units(Units(units_of(experts, _sentences(record, step, name))))
        return


def _sentences(record: RunRecord, step: int, name: str) -> pd.DataFrame | None:
    """None for results that are older than this attachment."""
    try:
        return record.table.attachment(step, name, "sentences").to_pandas()
    except FileNotFoundError:
        return None


def units_of(experts: pd.DataFrame, sentences: pd.DataFrame | None) -> dict[str, list[Unit]]:
    """Concept to its units, in the order of the page."""
    columns = [column for column in experts.columns if column.startswith("ap_")]
    units = experts.groupby(["concept", "unit"], as_index=False).agg(
        {"language": "nunique", **dict.fromkeys(["layer", "kind", "index", *columns], "first")}
    )
    units = units.assign(mean=units[columns].mean(axis=1))
    units = units.sort_values(["concept", "language", "mean", "unit"], ascending=[True, False, False, True])
    texts: dict[tuple[str, int], list[tuple[str, float, bool, str]]] = {}
    for row in sentences.itertuples(index=False) if sentences is not None else ():
        said = (str(row.language), round(float(row.response), 3), bool(row.positive), str(row.text))
        texts.setdefault((row.concept, row.unit), []).append(said)
    found: dict[str, list[Unit]] = {}
    for row in units.groupby("concept").head(UNITS).to_dict("records"):
        found.setdefault(row["concept"], []).append(
            Unit(
                name=f"{layer_label(int(row['layer']))} {row['kind']} {row['index']}",
                num_languages=int(row["language"]),
                ap={column[3:]: round(float(row[column]), 3) for column in columns},
                sentences=texts.get((row["concept"], row["unit"]), []),
            )
        )
    return found
