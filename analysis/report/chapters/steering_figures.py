"""Figures of steering experiments: used alike by the report and, through the live callback, by W&B."""

from __future__ import annotations

import html
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from analysis.report.figures import with_fields
from analysis.report.pair_figures import directed_matrix
from analysis.report.style import PALETTE, add_floor, add_level, add_line, base_figure, error_bars, over_training
from analysis.results import ResultTable
from analysis.steering.judging import UNDETERMINED

UNDECIDED = "#c9ced4"
NOTHING_HELD = "nothing held"
LIVE_TEXTS = 60
"""Texts in the table of a live page."""


def live_steering_figures(table: ResultTable, analyses: Sequence[str], step: int) -> dict[str, go.Figure]:
    """The figures of every steering analysis among `analyses` up to a step, and a table of texts of that step."""
    figures: dict[str, go.Figure] = {}
    for name in analyses:
        frame = table.frame([name])
        frame = frame[frame["step"] <= step]
        if "output_language" not in set(frame["metric"]):
            continue
        drawn = {
            **{f"output_experts_{k}": output_language_bars(frame, k) for k in held_counts(frame)},
            "concept_by_k": concept_hit_by_k(frame, step),
            "concept_over_steps": hit_over_steps(frame),
            "texts": texts_figure(table.attachment(step, name, "texts").to_pandas(), step),
        }
        figures |= {f"panels/{name}/{key}": figure for key, figure in drawn.items() if figure is not None}
    return figures


def held_counts(frame: pd.DataFrame) -> list[int]:
    """Every K of the rows, ascending."""
    return sorted(frame.loc[frame["condition"] == "experts", "k"].dropna().astype(int).unique().tolist())


def choose_texts(texts: pd.DataFrame, number: int) -> pd.DataFrame:
    """About `number` texts, as many of every condition and K, those that name their concept first."""
    texts = texts.assign(hit=texts["hit"].fillna(False).astype(bool), control=texts["condition"] != "experts")
    texts = texts.sort_values(["hit", "seed", "concept", "source"], ascending=[False, True, True, True])
    texts = texts.sort_values(["control", "condition", "k"], kind="stable")
    groups = texts.groupby(["condition", "k"], sort=False)
    return groups.head(max(3, number // max(1, groups.ngroups))).drop(columns="control")


def texts_figure(texts: pd.DataFrame, step: int) -> go.Figure:
    """A table of generated texts."""
    shown = choose_texts(texts, LIVE_TEXTS)
    figure = base_figure(
        f"Generated texts, step {step} ({len(shown)} of {len(texts)}, those with the concept first)", ""
    )
    columns = ["condition", "k", "concept", "source", "language", "hit", "text"]
    cells = [[html.escape("" if pd.isna(value) else str(value)) for value in shown[column]] for column in columns]
    header = ["condition", "K", "concept", "source", "written in", "named", "text"]
    figure.add_trace(
        go.Table(
            columnwidth=[1, 0.6, 1, 0.6, 1, 0.6, 7],
            header={"values": header, "align": "left"},
            cells={"values": cells, "align": "left"},
        )
    )
    figure.update_layout(height=700)
    return figure


def output_language_bars(frame: pd.DataFrame, k: int) -> go.Figure | None:
    """Stacked shares of output languages: a group of bars for each source language and for no intervention, one bar a
    step (the paper's figure).
    """
    shares = frame[frame["metric"] == "output_language"]
    rows = shares[(shares["condition"] == "experts") & (shares["k"] == k) & shares["language"].notna()]
    if rows.empty:
        return None
    plain = shares[shares["condition"] == "none"].assign(language=NOTHING_HELD)
    rows = pd.concat([plain, rows.sort_values(["language", "step"])])
    figure = base_figure(f"Language of the output, experts, K = {k}", "share of texts")
    languages = sorted(rows["other_language"].unique(), key=lambda code: (code == UNDETERMINED, code))
    for index, language in enumerate(languages):
        part = rows[rows["other_language"] == language]
        figure.add_trace(
            go.Bar(
                x=[part["language"].tolist(), [f"step {step}" for step in part["step"]]],
                y=part["value"],
                name=language,
                marker={"color": UNDECIDED if language == UNDETERMINED else PALETTE[index % len(PALETTE)]},
            )
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="source language of the held neurons, by step")
    figure.update_yaxes(range=[0, 1])
    return figure


def concept_hit_by_k(frame: pd.DataFrame, step: int) -> go.Figure | None:
    """Concept hit rate against K for every condition, with intervals; dashed: without intervention."""
    rows = with_fields(frame[frame["step"] == step], "concept_hit", by=("condition", "k"))
    if rows.empty:
        return None
    figure = base_figure(f"Texts that name the concept, step {step}", "share of texts")
    for index, (condition, part) in enumerate(rows.groupby("condition", sort=False)):
        part = part.sort_values("k")
        counts = [str(int(k)) for k in part["k"]]
        add_line(figure, counts, part["value"], str(condition), index, error_y=error_bars(part))
    if rows["chance"].notna().any():
        add_floor(figure, float(rows["chance"].dropna().iloc[0]), "no intervention")
    figure.update_xaxes(title="K, number of held neurons", type="category")
    return figure


def hit_over_steps(frame: pd.DataFrame) -> go.Figure | None:
    """Concept hit rate over training at the largest K, one line a condition; None for a single step."""
    rows = with_fields(frame, "concept_hit", by=("condition", "k"))
    if rows["step"].nunique() < 2:
        return None
    k = int(rows["k"].max())
    figure = base_figure(f"Texts that name the concept over training, K = {k}", "share of texts")
    for index, (condition, part) in enumerate(rows[rows["k"] == k].groupby("condition", sort=False)):
        part = part.sort_values("step")
        add_line(figure, part["step"].tolist(), part["value"], str(condition), index, error_y=error_bars(part))
    plain = with_fields(frame, "concept_hit", by=("condition",)).sort_values("step")
    add_level(figure, plain["step"].tolist(), plain["value"], "no intervention")
    over_training(figure)
    return figure


def source_by_output(frame: pd.DataFrame, metric: str, k: int, step: int) -> go.Figure | None:
    """Matrix of `output_language` or `concept_in_language`: source language down, language of the text across."""
    rows = frame[(frame["condition"] == "experts") & (frame["k"] == k) & (frame["step"] == step)]
    rows = with_fields(rows, metric, by=("condition", "k", "language", "other_language"))
    if rows.empty:
        return None
    what = "Language of the text" if metric == "output_language" else "... and concept named in it"
    figure = directed_matrix(rows, f"{what}, K = {k}, step {step}", unit="share")
    figure.update_traces(zmin=0.0, zmax=1.0)
    languages = sorted(rows["other_language"].unique(), key=lambda code: (code == UNDETERMINED, code))
    figure.update_xaxes(title="language of the text", categoryorder="array", categoryarray=languages)
    figure.update_yaxes(title="source of the neurons")
    return figure
