"""What the training recorded: held-out loss per language and what the optimiser saw."""

from __future__ import annotations

from analysis.report import figures as draw
from analysis.report.page import Captioned, Card, Page
from analysis.report.run import RunRecord

BITS = "val/bits_per_byte"
CURVES = (
    (
        "train/loss",
        "Training loss",
        "nats per token",
        "Mean over a batch, drawn from the mixture of languages.",
    ),
    ("train/gradient_norm", "Gradient norm before clipping", "norm", "Over all parameters."),
    ("perf/tokens_per_second", "Throughput", "tokens per second", "Of training steps alone, without analyses."),
    ("perf/mfu", "Model FLOP utilisation", "share of the peak", "Of training steps alone, without analyses."),
    ("optim/lr_0", "Learning rate", "", "Of the first group of parameters."),
)
LOSS = (
    "Loss over the bytes of held-out text. Languages differ in bytes a character, so compare a language with itself "
    "over time; its chance level is in the chapter on held-out loss."
)


def add_chapter(page: Page, record: RunRecord) -> None:
    page.chapter("Training", "Loss on held-out text per language, in bits per byte, and what the optimiser saw.")
    history = record.history
    items: list[Card] = []
    if history["key"].str.startswith(BITS + "/").any():
        figure = draw.history_lines(history, BITS, "Held-out loss per language", unit="bits per byte")
        items.append(Captioned(figure, LOSS))
    for key, title, unit, said in CURVES:
        rows = history[history["key"] == key]
        if not rows.empty:
            renamed = rows.assign(key="x/" + key.rpartition("/")[2])
            items.append(Captioned(draw.history_lines(renamed, "x", title, unit=unit), said))
    page.grid(items)
