"""Concepts across languages without sets of experts: directions by layer, and frozen experts followed over training."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analysis.report import figures as draw
from analysis.report.chapters.any_measure import add_figures, beside_own, captioned, newest_matrix, open_chapter
from analysis.report.explanations import in_words
from analysis.report.figures import select
from analysis.report.page import Card, Page
from analysis.report.run import RunRecord
from analysis.report.tables import with_interval


def direction_verdicts(record: RunRecord, name: str) -> list[str]:
    """Does a concept's direction of one language read another?"""
    rows, own = beside_own(record, name, "direction_transfer", "direction_own")
    if rows.empty:
        return []
    last = rows.iloc[-1]
    within = f"; {own:.3f} in its own" if own is not None else ""
    first = rows.iloc[0]
    start = f"; {first['value']:.3f} untrained" if first["step"] == 0 and len(rows) > 1 else ""
    return [
        f"Directions ({name}): a concept's direction of one language tells its sentences in another with AUROC "
        f"{with_interval(last['value'], last['low'], last['high'])} at step {int(last['step'])} (shuffled labels "
        f"{last['chance']:.3f}{start}{within}), mean over layers."
    ]


def add_directions(page: Page, record: RunRecord, name: str) -> None:
    open_chapter(
        page,
        record,
        name,
        "Directions of concepts",
        "The difference of means of a concept's sentences and the others in one language, used to tell them in "
        "another. Dashed: within a language, the most to be expected.",
    )
    layers = select(record.frame, name, "direction_transfer", by=("layer",))
    figures: list[go.Figure] = []
    if not layers.empty:
        own = select(record.frame, name, "direction_own", by=("layer",))
        baselines = {} if own.empty else {"within a language": own}
        figures.append(draw.layer_curves(layers, "Transfer by layer", unit="AUROC", baselines=baselines))
        if layers["step"].nunique() > 1:
            figures.append(draw.layers_by_steps(layers, "Transfer, layer by training step", unit="AUROC"))
    cards = [captioned(record, name, "direction_transfer", figure) for figure in figures]
    page.grid([*cards, newest_matrix(record, name, "direction_transfer", "From one language (down) to another")])
    page.heading("Further measures")
    add_figures(page, record, name, leave_out=("direction_transfer",))


def trajectory_verdicts(record: RunRecord, name: str) -> list[str]:
    """Do the frozen experts of one language come to detect the concept in others?"""
    pairs = select(record.frame, name, "frozen_ap", by=("language", "other_language"))
    means = _own_and_other(record.usable(pairs))
    if len(means) < 2:
        return []
    first, last = means.iloc[0], means.iloc[-1]
    return [
        f"Trajectories ({name}): the frozen experts of a language have a mean AP of {first['own']:.3f} in it at step "
        f"{means.index[0]} and {last['own']:.3f} at step {means.index[-1]}; in other languages "
        f"{first['other']:.3f} and {last['other']:.3f} (mean of all units {last['chance']:.3f})."
    ]


def add_trajectories(page: Page, record: RunRecord, name: str) -> None:
    open_chapter(
        page,
        record,
        name,
        "Frozen experts over training",
        "The experts of one step, looked at at every other: do they detect their concept before, and elsewhere?",
    )
    cards: list[Card | None] = []
    for metric, unit in (("frozen_ap", "AP"), ("frozen_rank", "rank (share; 0 the best)"), ("frozen_experts", "share")):
        means = _own_and_other(select(record.frame, name, metric, by=("language", "other_language")))
        if len(means) < 2:
            continue
        long = means.reset_index().melt("step", ["own", "other", "chance"], "where").assign(chance=float("nan"))
        long["where"] = long["where"].replace({"own": "own language", "other": "other languages"})
        figure = draw.over_steps(long, in_words(metric), unit=unit, group="where")
        cards.append(captioned(record, name, metric, figure))
    page.grid([*cards, newest_matrix(record, name, "frozen_ap", "AP: found in (down), looked at in")])
    page.heading("Further measures")
    add_figures(page, record, name)


def _own_and_other(pairs: pd.DataFrame) -> pd.DataFrame:
    """Means by step: own, other, chance."""
    same = pairs["language"] == pairs["other_language"]
    parts = {"own": pairs[same]["value"], "other": pairs[~same]["value"], "chance": pairs[~same]["chance"]}
    return pd.DataFrame({name: values.groupby(pairs["step"]).mean() for name, values in parts.items()}).sort_index()
