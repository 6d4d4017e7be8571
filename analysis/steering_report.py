"""The steering chapter of a report: in which language the model writes, whether it hits the concept, and the texts.

Called by `analysis.report`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from analysis.figures import CHANCE, PALETTE, base_figure, directed_matrix
from analysis.judging import UNDETERMINED
from analysis.page import Page
from analysis.runs import RunRecord

MAX_TEXTS = 400
"""Texts shown in the page; all of them are in the attachment `texts`."""


def add_steering(page: Page, record: RunRecord, name: str) -> None:
    """Figures and texts of one steering analysis."""
    frame = record.frame[record.frame["analysis"] == name]
    page.chapter(
        "Steering: concept neurons held while the model writes",
        "The top K units of a concept in a source language are held at their response to its positives; the model "
        "writes from its start token. Controls: nothing held, as many random units of the same sites, the next K "
        "units, the units of another concept.",
    )
    steps = sorted(frame["step"].unique())
    kinds = [kind for kind in frame["kind"].dropna().unique() if kind != "none"]
    main = [kind for kind in kinds if kind.startswith("experts@")]
    figures: list[go.Figure | None] = []
    for kind in main:
        figures.append(output_language_bars(frame, kind))
        matrix = _source_by_output(frame, kind, steps[-1])
        if matrix is not None:
            figures.append(matrix)
    figures += [concept_hit_by_k(frame, steps[-1]), hit_over_steps(frame) if len(steps) > 1 else None]
    page.grid(figure for figure in figures if figure is not None)
    _texts(page, record, name, steps)


def output_language_bars(frame: pd.DataFrame, kind: str) -> go.Figure | None:
    """Stacked shares of output languages: one group of bars a source language, one bar a step (the paper's figure)."""
    rows = frame[(frame["metric"] == "output_language") & (frame["kind"] == kind) & frame["language"].notna()]
    if rows.empty:
        return None
    figure = base_figure(f"Language of the output, {kind.replace('@', ', K = ')}", "share of texts")
    languages = sorted(rows["other_language"].unique(), key=lambda code: (code == UNDETERMINED, code))
    for index, language in enumerate(languages):
        part = rows[rows["other_language"] == language].sort_values(["language", "step"])
        figure.add_trace(
            go.Bar(
                x=[part["language"].tolist(), [f"step {step}" for step in part["step"]]],
                y=part["value"],
                name=language,
                marker={"color": "#c9ced4" if language == UNDETERMINED else PALETTE[index % len(PALETTE)]},
            )
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="source language of the held neurons, by step")
    figure.update_yaxes(range=[0, 1])
    return figure


def concept_hit_by_k(frame: pd.DataFrame, step: int) -> go.Figure | None:
    """Concept hit rate against K for every condition, with intervals; dashed: without intervention."""
    rows = frame[
        (frame["metric"] == "concept_hit")
        & (frame["step"] == step)
        & frame["language"].isna()
        & frame["concept"].isna()
        & frame["kind"].str.contains("@", na=False)
    ]
    if rows.empty:
        return None
    figure = base_figure(f"Texts that name the concept, step {step}", "share of texts")
    rows = rows.assign(condition=rows["kind"].str.partition("@")[0], k=rows["kind"].str.partition("@")[2].astype(int))
    for index, (condition, part) in enumerate(rows.groupby("condition", sort=False)):
        part = part.sort_values("k")
        figure.add_trace(
            go.Scatter(
                x=[str(k) for k in part["k"]],
                y=part["value"],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": part["high"] - part["value"],
                    "arrayminus": part["value"] - part["low"],
                },
                mode="lines+markers",
                name=str(condition),
                line={"color": PALETTE[index % len(PALETTE)]},
            )
        )
    if rows["chance"].notna().any():
        figure.add_hline(
            y=float(rows["chance"].dropna().iloc[0]),
            line={"color": CHANCE, "dash": "dash"},
            annotation_text="no intervention",
        )
    figure.update_xaxes(title="K, number of held neurons", type="category")
    return figure


def hit_over_steps(frame: pd.DataFrame) -> go.Figure | None:
    """Concept hit rate over training, one line a condition."""
    rows = frame[
        (frame["metric"] == "concept_hit")
        & frame["language"].isna()
        & frame["concept"].isna()
        & frame["kind"].str.contains("@", na=False)
    ]
    if rows.empty:
        return None
    figure = base_figure("Texts that name the concept over training", "share of texts")
    for index, (kind, part) in enumerate(rows.groupby("kind", sort=False)):
        part = part.sort_values("step")
        figure.add_trace(
            go.Scatter(
                x=[str(step) for step in part["step"]],
                y=part["value"],
                mode="lines+markers",
                name=str(kind),
                line={"color": PALETTE[index % len(PALETTE)]},
            )
        )
    figure.update_xaxes(title="optimizer step", type="category")
    return figure


def _source_by_output(frame: pd.DataFrame, kind: str, step: int) -> go.Figure | None:
    rows = frame[
        (frame["metric"] == "output_language")
        & (frame["kind"] == kind)
        & (frame["step"] == step)
        & frame["language"].notna()
    ]
    if rows.empty:
        return None
    title = f"Source (down) to output language (across), {kind.replace('@', ', K = ')}, step {step}"
    return directed_matrix(rows, title, unit="share")


def _texts(page: Page, record: RunRecord, name: str, steps: Sequence[int]) -> None:
    """A browsable table of generated texts of the last step with the concept's words marked."""
    for step in reversed(steps):
        try:
            table = record.table.attachment(int(step), name, "texts").to_pandas()
        except FileNotFoundError:
            continue
        # texts of every condition, hits first, so that the sample shows what the figures count
        table = table.sort_values(["hit", "condition", "concept", "seed"], ascending=[False, True, True, True])
        shown = table.groupby(["condition", "k"], sort=False).head(max(10, MAX_TEXTS // table["condition"].nunique()))
        shown = shown.head(MAX_TEXTS)
        page.heading(f"Generated texts, step {step} ({len(shown)} of {len(table)})")
        page.raw(
            f'<input class="filter" data-table="t-{html.escape(name)}" placeholder="filter by concept, language, text">'
            f'<div class="scroll"><table id="t-{html.escape(name)}"><thead><tr><th>condition</th><th>K</th>'
            "<th>concept</th><th>source</th><th>written in</th><th>hit</th><th>text</th></tr></thead><tbody>"
        )
        for row in shown.itertuples():
            cells = (row.condition, row.k or "", row.concept or "", row.source or "", row.language)
            page.raw(
                "<tr>"
                + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
                + f"<td>{'yes' if row.hit else ''}</td>"
                + f'<td class="text">{marked(row.text, list(row.hit_spans))}</td></tr>'
            )
        page.raw("</tbody></table></div>")
        return


def marked(text: str, spans: Sequence[int]) -> str:
    """The text as HTML with the spans (start, end, start, end, ...) marked."""
    parts, at = [], 0
    for start, end in zip(spans[::2], spans[1::2], strict=True):
        parts += [html.escape(text[at:start]), "<mark>", html.escape(text[start:end]), "</mark>"]
        at = end
    return "".join([*parts, html.escape(text[at:])])
