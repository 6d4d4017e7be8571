"""Language identity: the probe's accuracy by layer and step beside what needs no network."""

from __future__ import annotations

import pandas as pd

from analysis.report import figures as draw
from analysis.report.chapters.any_measure import add_figures
from analysis.report.figures import select
from analysis.report.headlines import layer_label
from analysis.report.page import Page
from analysis.report.run import RunRecord


def verdicts(record: RunRecord, name: str) -> list[str]:
    """Where the language of a token can be read: middle layers against the ends, at the last usable snapshot."""
    rows = select(record.frame, name, "accuracy", by=("layer",))
    rows = rows[rows["step"].isin(record.usable_steps)]
    if rows.empty:
        return []
    step = int(rows["step"].max())
    rows = rows[rows["step"] == step].sort_values("layer")
    blocks = rows[rows["layer"] >= 0]
    if len(blocks) < 3 or len(blocks) == len(rows):
        return []
    third = len(blocks) // 3
    middle = blocks.iloc[third : len(blocks) - third]
    lowest = middle.loc[middle["value"].idxmin()]
    ends = {"the embeddings": rows.iloc[0], "the last layer": blocks.iloc[-1]}
    said = "; ".join(f"{where} {_with_interval(row)}" for where, row in ends.items())
    falls = all(lowest["high"] < row["low"] for row in ends.values())
    return [
        f"Language identity: a linear probe reads the language of a token at step {step} with accuracy "
        f"{_with_interval(lowest)} in the weakest of the middle layers ({layer_label(int(lowest['layer']))}); {said}. "
        + ("The middle falls below both ends." if falls else "No fall of the middle below both ends is shown.")
    ]


def _with_interval(row: pd.Series) -> str:
    return f"{row['value']:.3f}" + ("" if pd.isna(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]")


def add_chapter(page: Page, record: RunRecord, name: str) -> None:
    page.chapter(
        "Language identity by layer",
        "Accuracy of a linear probe that reads the language off hidden states of single tokens, sentences never shared "
        "between training and test. Token identity is what the token alone gives away; a layer above it uses context.",
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
        page.grid(
            [
                draw.layers_by_steps(accuracy, "Probe accuracy, layer by training step", unit="accuracy"),
                draw.layer_curves(accuracy, "Probe accuracy by layer", unit="accuracy", baselines=baselines),
            ]
        )
    page.heading("Further measures of the probe")
    add_figures(page, record, name, leave_out=("accuracy", "accuracy_shuffled", "accuracy_majority"))
