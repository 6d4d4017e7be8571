"""Language identity: the probe's accuracy by layer and step beside what needs no network."""

from __future__ import annotations

from analysis.report import figures as draw
from analysis.report.chapters.any_measure import add_figures
from analysis.report.figures import select
from analysis.report.page import Page
from analysis.report.run import RunRecord


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
