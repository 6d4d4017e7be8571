"""What the training recorded: held-out loss per language and what the optimiser saw."""

from __future__ import annotations

import plotly.graph_objects as go

from analysis.report import figures as draw
from analysis.report.page import Page
from analysis.report.run import RunRecord

BITS = "val/bits_per_byte"
CURVES = (
    ("train/loss", "Training loss", "nats per token"),
    ("train/gradient_norm", "Gradient norm before clipping", ""),
    ("perf/tokens_per_second", "Throughput", "tokens per second"),
    ("perf/mfu", "Model FLOP utilisation", ""),
    ("optim/lr_0", "Learning rate", ""),
)


def add_chapter(page: Page, record: RunRecord) -> None:
    page.chapter("Training", "Loss on held-out text per language, in bits per byte, and what the optimiser saw.")
    history = record.history
    items: list[go.Figure] = []
    if history["key"].str.startswith(BITS + "/").any():
        items.append(draw.history_lines(history, BITS, "Held-out loss per language", unit="bits per byte"))
    for key, title, unit in CURVES:
        rows = history[history["key"] == key]
        if not rows.empty:
            renamed = rows.assign(key="x/" + key.rpartition("/")[2])
            items.append(draw.history_lines(renamed, "x", title, unit=unit))
    page.grid(items)
