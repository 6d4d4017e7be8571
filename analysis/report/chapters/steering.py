"""The steering chapter of a report: in which language the model writes, whether it hits the concept, and the texts."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.report.chapters.any_measure import open_chapter
from analysis.report.chapters.steering_figures import (
    choose_texts,
    concept_hit_by_k,
    held_counts,
    hit_over_steps,
    output_language_bars,
    source_by_output,
)
from analysis.report.explanations import explain, in_words
from analysis.report.figures import select
from analysis.report.headlines import FIELDS
from analysis.report.page import Captioned, Page, Texts, marked_pieces
from analysis.report.run import RunRecord
from analysis.report.tables import Table, with_interval

MAX_TEXTS = 400
"""Texts shown in the page; all of them are in the attachment `texts`."""
COLUMNS = (
    ("concept_hit", "names it"),
    ("concept_in_source_language", "in source lang."),
    ("concept_in_other_language", "in other lang."),
    ("concept_hit_experts", "units find it"),
    ("output_in_source_language", "writes source lang."),
    ("bits_per_byte", "bits / byte"),
)
"""Metrics of the closing table. Naming the concept "in" a language means that the text is written in it, too."""


def verdicts(record: RunRecord, name: str) -> list[str]:
    """What holding the experts does beyond the strongest control, paired over concepts."""
    rows = record.usable(select(record.frame, name, "concept_hit_effect", by=("condition", "k")))
    if rows.empty:
        return []
    rows = rows[rows["step"] == rows["step"].max()]
    rows = rows[rows["k"] == rows["k"].max()]
    rows, last = rows.assign(**_bounds(rows)), rows.iloc[0]
    effects_of = "; ".join(f"{row['condition']} {_effect(row)}" for _, row in rows.iterrows())
    return [
        f"Steering ({name}): texts that name the concept, held experts minus control, K = {int(last['k'])}, step "
        f"{int(last['step'])}: {effects_of}. " + _conclusion(rows)
    ]


def _bounds(rows: pd.DataFrame) -> pd.DataFrame:
    """low, high and p of effects, missing for those of a single value: older results have an interval of no width."""
    single = (rows["low"] == rows["high"]) & (rows["p"] == 1.0) & (rows["value"] != 0.0)
    return rows[["low", "high", "p"]].mask(single)


def _conclusion(rows: pd.DataFrame) -> str:
    if rows["low"].isna().any():
        return "A single value (one concept, one seed) shows nothing."
    return "Above every control." if (rows["low"] > 0).all() else "No effect beyond every control is shown."


def add_chapter(page: Page, record: RunRecord, name: str) -> None:
    """Figures and texts of one steering analysis."""
    frame = record.frame[record.frame["analysis"] == name]
    open_chapter(
        page,
        record,
        name,
        "Steering: concept neurons held while the model writes",
        "The top K units of a concept in a source language are held at their response to its positives; the model "
        "writes from its start token. Controls: nothing held, as many random units of the same sites, the next K "
        "units, the units of another concept. An effect is what the experts do beyond all of these and beyond the "
        "untrained network; on the diagonal of the matrices a language meets its own experts.",
    )
    steps = sorted(frame["step"].unique())
    page.grid(effects(frame[frame["step"] == steps[-1]], name))
    drawn = [("output_language", output_language_bars(frame, k)) for k in held_counts(frame)]
    drawn += [("concept_hit", concept_hit_by_k(frame, steps[-1])), ("concept_hit", hit_over_steps(frame))]
    for k in held_counts(frame):
        for metric in ("output_language", "concept_in_language"):
            drawn.append((metric, source_by_output(frame, metric, k, steps[-1])))
    page.grid(Captioned(figure, explain("Steering", metric)) for metric, figure in drawn if figure is not None)
    _texts(page, record, name, steps)


def effects(frame: pd.DataFrame, name: str) -> list[Table]:
    """For every step the rates of each condition, and the experts' difference to each control."""
    tables = []
    fields = [field for field in FIELDS if field not in ("condition", "k")]
    for step, rows in frame.groupby("step", sort=True):
        overall = rows[rows[fields].isna().all(axis=1) & rows["condition"].notna()]
        differences = overall["metric"].str.endswith("_effect")
        accuracy = rows[(rows["metric"] == "check_accuracy") & rows["language"].isna()]["value"]
        tables.append(_rates(overall[~differences], f"{name}, step {step}", accuracy))
        if differences.any():
            tables.append(_differences(overall[differences], f"{name}, step {step}"))
    return tables


def _rates(overall: pd.DataFrame, what: str, accuracy: pd.Series) -> Table:
    columns = [column for column in COLUMNS if column[0] in set(overall["metric"])]
    groups = {
        (str(condition), 0 if pd.isna(k) else int(k)): part.set_index("metric")
        for (condition, k), part in overall.groupby(["condition", "k"], dropna=False)
    }
    # No intervention first, then by K, the experts before their controls.
    ordered = sorted(groups, key=lambda under: (under[1], "" if under[0] == "experts" else under[0]))
    note = ""
    if not accuracy.empty:
        note = (
            "In source (other) lang.: written in that language, with a word of it. Units find it: the concept's units; "
            f"on held-out sentences their balanced accuracy is {accuracy.iloc[0]:.2f} (chance 0.5)."
        )
    return Table(
        title=f"{what}: share of texts that name the concept, against controls",
        header=("condition", "K", *(title for column in columns for title in _titles(*column))),
        rows=tuple(_line(*under, groups[under], columns) for under in ordered),
        note=note,
    )


def _differences(overall: pd.DataFrame, what: str) -> Table:
    rows = tuple(
        (
            str(row["condition"]),
            str(int(row["k"])),
            in_words(row["metric"].removesuffix("_effect")),
            _effect(row),
            "" if pd.isna(row["p"]) else f"{row['p']:.2g}",
        )
        for _, row in overall.assign(**_bounds(overall)).sort_values(["k", "condition"], kind="stable").iterrows()
    )
    return Table(
        title=f"{what}: held experts minus each control",
        header=("control", "K", "share of texts", "difference [95 %]", "p"),
        rows=rows,
        note="Paired over concepts: every concept and seed was written under both.",
    )


def _effect(row: pd.Series) -> str:
    return with_interval(row["value"], row["low"], row["high"], "+.3f")


def _line(condition: str, k: int, numbers: pd.DataFrame, columns: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return condition, str(k or ""), *(cell for metric, _ in columns for cell in _cells(numbers, metric))


def _titles(metric: str, title: str) -> tuple[str, ...]:
    return (title, "95 %") if metric == "concept_hit" else (title,)


def _cells(numbers: pd.DataFrame, metric: str) -> tuple[str, ...]:
    if metric not in numbers.index:
        return ("",) * len(_titles(metric, ""))
    row = numbers.loc[metric]
    if metric == "concept_hit":
        return f"{row['value']:.3f}", f"{row['low']:.2f}-{row['high']:.2f}"
    return (f"{row['value']:.2f}" if metric == "bits_per_byte" else f"{row['value']:.3f}",)


def _texts(page: Page, record: RunRecord, name: str, steps: Sequence[int]) -> None:
    """A browsable table of generated texts of the last step with the concept's words marked."""
    for step in reversed(steps):
        try:
            table = record.table.attachment(int(step), name, "texts").to_pandas()
        except FileNotFoundError:
            continue
        shown = choose_texts(table, MAX_TEXTS)
        page.heading(f"Generated texts, step {step} ({len(shown)} of {len(table)}, those that name the concept first)")
        rows = []
        for row in shown.itertuples():
            cells = (row.condition, row.k or "", row.concept or "", row.source or "", row.language)
            judged = ("yes" if row.hit else "", "yes" if row.hit_experts is True else "")
            rows.append((tuple(map(str, (*cells, *judged))), marked_pieces(row.text, list(row.hit_spans))))
        header = ("condition", "K", "concept", "source", "written in", "named", "units", "text")
        page.texts(Texts(header, tuple(rows)))
        return
