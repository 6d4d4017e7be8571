"""The steering chapter of a report: in which language the model writes, whether it hits the concept, and the texts."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from analysis.report.chapters.steering_figures import (
    choose_texts,
    concept_hit_by_k,
    expert_kinds,
    hit_over_steps,
    output_language_bars,
    source_by_output,
)
from analysis.report.chapters.steering_summary import effects
from analysis.report.page import Page
from analysis.report.run import RunRecord

MAX_TEXTS = 400
"""Texts shown in the page; all of them are in the attachment `texts`."""


def add_steering(page: Page, record: RunRecord, name: str) -> None:
    """Figures and texts of one steering analysis."""
    frame = record.frame[record.frame["analysis"] == name]
    page.chapter(
        "Steering: concept neurons held while the model writes",
        "The top K units of a concept in a source language are held at their response to its positives; the model "
        "writes from its start token. Controls: nothing held, as many random units of the same sites, the next K "
        "units, the units of another concept. An effect is what the experts do beyond all of these and beyond the "
        "untrained network; on the diagonal of the matrices a language meets its own experts.",
    )
    steps = sorted(frame["step"].unique())
    page.grid([effects(frame[frame["step"] == steps[-1]], name)[0]])
    figures: list[go.Figure | None] = [output_language_bars(frame, kind) for kind in expert_kinds(frame)]
    figures += [concept_hit_by_k(frame, steps[-1]), hit_over_steps(frame)]
    for kind in expert_kinds(frame):
        figures += [
            source_by_output(frame, "output_language", kind, steps[-1]),
            source_by_output(frame, "concept_in_language", kind, steps[-1]),
        ]
    page.grid(figure for figure in figures if figure is not None)
    _texts(page, record, name, steps)


def _texts(page: Page, record: RunRecord, name: str, steps: Sequence[int]) -> None:
    """A browsable table of generated texts of the last step with the concept's words marked."""
    for step in reversed(steps):
        try:
            table = record.table.attachment(int(step), name, "texts").to_pandas()
        except FileNotFoundError:
            continue
        shown = choose_texts(table, MAX_TEXTS)
        page.heading(f"Generated texts, step {step} ({len(shown)} of {len(table)}, those that name the concept first)")
        page.raw(
            f'<input class="filter" data-table="t-{html.escape(name)}" placeholder="filter by concept, language, text">'
            f'<div class="scroll"><table id="t-{html.escape(name)}"><thead><tr><th>condition</th><th>K</th>'
            "<th>concept</th><th>source</th><th>written in</th><th>named</th><th>units</th><th>text</th></tr></thead>"
            "<tbody>"
        )
        for row in shown.itertuples():
            cells = (row.condition, row.k or "", row.concept or "", row.source or "", row.language)
            found = "yes" if row.hit_experts is True else ""
            page.raw(
                "<tr>"
                + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
                + f"<td>{'yes' if row.hit else ''}</td><td>{found}</td>"
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
