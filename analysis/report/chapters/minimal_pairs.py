"""Grammatical against ungrammatical sentences: accuracy by language, and by phenomenon."""

from __future__ import annotations

import pandas as pd

from analysis.report import figures as draw
from analysis.report.chapters.any_measure import add_figures, open_chapter
from analysis.report.explanations import explain
from analysis.report.figures import select
from analysis.report.page import Captioned, Card, Page
from analysis.report.pair_figures import directed_matrix
from analysis.report.run import RunRecord


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
        f"Grammar ({name}): the grammatical sentence of a pair is the more probable one in {last['value']:.1%} "
        f"[{last['low']:.1%}, {last['high']:.1%}] at step {int(last['step'])} (chance 50 %; {worst['language']} "
        f"{worst['value']:.1%} to {best['language']} {best['value']:.1%}): {verdict}."
    ]


def add_chapter(page: Page, record: RunRecord, name: str) -> None:
    open_chapter(
        page,
        record,
        name,
        "Minimal pairs",
        "How often the grammatical sentence is more probable than one that differs in what makes it wrong.",
    )
    said = explain("MinimalPairs", "pair_accuracy")
    cards: list[Card] = []
    languages = select(record.frame, name, "pair_accuracy", by=("language",))
    if languages["step"].nunique() > 1:
        cards.append(
            Captioned(draw.over_steps(languages, "Accuracy by language", unit="accuracy", group="language"), said)
        )
    phenomena = select(record.frame, name, "pair_accuracy", by=("language", "concept"))
    if not phenomena.empty:
        step = int(phenomena["step"].max())
        last: pd.DataFrame = phenomena[phenomena["step"] == step].assign(other_language=lambda rows: rows["concept"])
        title = f"Accuracy by language (down) and phenomenon, step {step}"
        cards.append(Captioned(directed_matrix(last, title, unit="accuracy"), said))
    page.grid(cards)
    page.heading("Further measures")
    add_figures(page, record, name)
