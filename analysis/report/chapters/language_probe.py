"""Language identity: the probe's accuracy by layer and step beside what needs no network."""

from __future__ import annotations

import pandas as pd

from analysis.report import figures as draw
from analysis.report.chapters.any_measure import add_figures, captioned, open_chapter
from analysis.report.comparison.steps import dip_between
from analysis.report.figures import select
from analysis.report.page import Page
from analysis.report.run import RunRecord
from analysis.report.tables import with_interval


def verdicts(record: RunRecord, name: str) -> list[str]:
    """Does the middle of the network lose the language of a token while an end keeps it?"""
    rows = record.usable(select(record.frame, name, "accuracy", by=("layer",)))
    if rows.empty:
        return []
    step = int(rows["step"].max())
    rows = rows[rows["step"] == step]
    best, worst = rows.loc[rows["value"].idxmax()], rows.loc[rows["value"].idxmin()]
    said = (
        f"Language identity: a linear probe reads the language of a token at step {step} with accuracy "
        f"{_with_interval(best)} at best ({_place(best)}), {_with_interval(worst)} at worst ({_place(worst)})"
    )
    dip = select(record.frame, name, "middle_dip")
    dip = dip[dip["step"] == step]
    if dip.empty:
        return [said + "."]
    row = dip.iloc[0]
    verdict = "no fall of the middle is shown"
    if row["high"] < 0:
        verdict = "the middle knows less than the better end"
    elif row["low"] > 0:
        verdict = "the middle knows more than both ends"
    said = f"{said}; middle third minus the better of both ends, on shared tokens, {_with_interval(row)}: {verdict}"
    return [said + _change_of_dip(record, name, step) + "."]


def _change_of_dip(record: RunRecord, name: str, step: int) -> str:
    """Against the first usable step that has one, on the same sentences."""
    first = int(record.usable(select(record.frame, name, "middle_dip"))["step"].iloc[0])
    change = dip_between(record, name, first, step) if first < step else None
    if change is None:
        return ""
    verdict = "it deepened" if change.high < 0 else "it filled" if change.low > 0 else "no change is shown"
    return f"; since step {first} {with_interval(*change, '+.3f')}: {verdict}"


def _place(row: pd.Series) -> str:
    return f"block {int(row['layer'])}" if row["layer"] >= 0 else "the embeddings"


def _with_interval(row: pd.Series) -> str:
    return with_interval(row["value"], row["low"], row["high"])


def add_chapter(page: Page, record: RunRecord, name: str) -> None:
    open_chapter(
        page,
        record,
        name,
        "Language identity by layer",
        "Accuracy of a linear probe that reads the language off hidden states of single tokens, sentences never shared "
        "between training and test. The embedding layer sees the token alone: what lies above its accuracy is context.",
    )
    frame = record.frame
    accuracy = select(frame, name, "accuracy", by=("layer",))
    if not accuracy.empty:
        baselines = {}
        for metric in ("accuracy_token_identity", "accuracy_shuffled", "accuracy_majority"):
            rows = select(frame, name, metric, by=("layer",))
            rows = select(frame, name, metric) if rows.empty else rows
            if not rows.empty:
                baselines[metric.removeprefix("accuracy_").replace("_", " ")] = rows
        over = draw.layers_by_steps(accuracy, "Probe accuracy, layer by training step", unit="accuracy")
        curves = draw.layer_curves(accuracy, "Probe accuracy by layer", unit="accuracy", baselines=baselines)
        page.grid(captioned(record, name, "accuracy", figure) for figure in (over, curves))
    page.heading("Further measures of the probe")
    add_figures(page, record, name, leave_out=("accuracy", "accuracy_shuffled", "accuracy_majority"))
