"""Grammatical against ungrammatical sentences: accuracy by language, and by phenomenon."""

from __future__ import annotations

from analysis.report.chapters.any_measure import add_figures, newest_matrix, open_chapter, over_training
from analysis.report.figures import select
from analysis.report.page import Page
from analysis.report.run import RunRecord
from analysis.report.tables import with_interval


def verdicts(record: RunRecord, name: str) -> list[str]:
    """Does the model prefer the grammatical sentence?"""
    rows = record.usable(select(record.frame, name, "pair_accuracy"))
    if rows.empty:
        return []
    last = rows.iloc[-1]
    languages = select(record.frame, name, "pair_accuracy", by=("language",))
    languages = languages[languages["step"] == last["step"]].sort_values("value")
    worst, best = languages.iloc[0], languages.iloc[-1]
    verdict = "above a guess" if last["low"] > 0.5 else "no better than a guess is shown"
    return [
        f"Grammar ({name}): the grammatical sentence of a pair is the more probable one in "
        f"{with_interval(last['value'], last['low'], last['high'], '.1%')} at step {int(last['step'])} (chance 50 %; "
        f"{worst['language']} {worst['value']:.1%} to {best['language']} {best['value']:.1%}): {verdict}."
    ]


def add_chapter(page: Page, record: RunRecord, name: str) -> None:
    open_chapter(
        page,
        record,
        name,
        "Minimal pairs",
        "How often the grammatical sentence is more probable than one that differs in what makes it wrong.",
    )
    across = "Accuracy by language (down) and phenomenon"
    page.grid(
        [
            over_training(record, name, "pair_accuracy", "Accuracy by language", group="language"),
            newest_matrix(record, name, "pair_accuracy", across, across="concept"),
        ]
    )
    page.heading("Further measures")
    add_figures(page, record, name)
