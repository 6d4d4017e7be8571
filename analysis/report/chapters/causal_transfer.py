"""Ablation across languages: what the experts of one language carry in another, beside what any ablation does."""

from __future__ import annotations

from analysis.report.chapters.any_measure import add_figures, beside_own, newest_matrix, open_chapter, over_training
from analysis.report.page import Page
from analysis.report.run import RunRecord
from analysis.report.tables import with_interval


def verdicts(record: RunRecord, name: str) -> list[str]:
    """Do the experts of one language carry a concept's words in another?"""
    rows, own = beside_own(record, name, "causal_transfer", "causal_own")
    if rows.empty:
        return []
    last = rows.iloc[-1]
    within = f"; within a language {own:.4f}" if own is not None else ""
    verdict = "they carry it" if last["low"] > 0 else "no effect is shown"
    return [
        f"Ablation ({name}): without a concept's experts of one language its words in another cost "
        f"{with_interval(last['value'], last['low'], last['high'], '.4f')} nats more than without experts of other "
        f"concepts, at step {int(last['step'])}{within}: {verdict}."
    ]


def add_chapter(page: Page, record: RunRecord, name: str) -> None:
    open_chapter(
        page,
        record,
        name,
        "Ablating experts across languages",
        "The experts of a concept in one language are set to zero and the loss of its words is read in another, minus "
        "what experts of other concepts do. Nats per token; chance 0.",
    )
    title = "From the ablated language (down) to the one that is read"
    page.grid(
        [
            newest_matrix(record, name, "causal_transfer", title),
            over_training(record, name, "causal_transfer", "Causal transfer over training"),
        ]
    )
    page.heading("Controls and further measures")
    add_figures(page, record, name, leave_out=("causal_transfer",))
