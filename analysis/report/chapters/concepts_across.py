"""Concepts across languages without sets of experts: directions by layer, and frozen experts followed over training."""

from __future__ import annotations

import pandas as pd

from analysis.report import figures as draw
from analysis.report.chapters.any_measure import add_figures, beside_own, open_chapter
from analysis.report.explanations import explain, in_words
from analysis.report.figures import select
from analysis.report.page import Captioned, Card, Page
from analysis.report.pair_figures import directed_matrix
from analysis.report.run import RunRecord


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
        f"{last['value']:.3f} [{last['low']:.3f}, {last['high']:.3f}] at step {int(last['step'])} (shuffled labels "
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
    said = explain("ConceptDirections", "direction_transfer")
    layers = select(record.frame, name, "direction_transfer", by=("layer",))
    cards: list[Card] = []
    if not layers.empty:
        own = select(record.frame, name, "direction_own", by=("layer",))
        baselines = {} if own.empty else {"within a language": own}
        cards.append(Captioned(draw.layer_curves(layers, "Transfer by layer", unit="AUROC", baselines=baselines), said))
        if layers["step"].nunique() > 1:
            cards.append(
                Captioned(draw.layers_by_steps(layers, "Transfer, layer by training step", unit="AUROC"), said)
            )
    _add_matrix(cards, record, name, "direction_transfer", "From one language (down) to another", said)
    page.grid(cards)
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
        f"{first['other']:.3f} and "
        f"{last['other']:.3f} (mean of all units {last['chance']:.3f})."
    ]


def add_trajectories(page: Page, record: RunRecord, name: str) -> None:
    open_chapter(
        page,
        record,
        name,
        "Frozen experts over training",
        "The experts of one step, looked at at every other: do they detect their concept before, and elsewhere?",
    )
    cards: list[Card] = []
    for metric, unit in (("frozen_ap", "AP"), ("frozen_rank", "rank (share; 0 the best)"), ("frozen_experts", "share")):
        pairs = select(record.frame, name, metric, by=("language", "other_language"))
        means = _own_and_other(pairs)
        if len(means) < 2:
            continue
        long = means.reset_index().melt("step", ["own", "other", "chance"], "where").assign(chance=float("nan"))
        long["where"] = long["where"].replace({"own": "own language", "other": "other languages"})
        figure = draw.over_steps(long, in_words(metric), unit=unit, group="where")
        cards.append(Captioned(figure, explain("Trajectories", metric)))
    _add_matrix(
        cards, record, name, "frozen_ap", "AP: found in (down), looked at in", explain("Trajectories", "frozen_ap")
    )
    page.grid(cards)
    page.heading("Further measures")
    add_figures(page, record, name)


def _own_and_other(pairs: pd.DataFrame) -> pd.DataFrame:
    """Means by step: own, other, chance."""
    same = pairs["language"] == pairs["other_language"]
    parts = {"own": pairs[same]["value"], "other": pairs[~same]["value"], "chance": pairs[~same]["chance"]}
    return pd.DataFrame({name: values.groupby(pairs["step"]).mean() for name, values in parts.items()}).sort_index()


def _add_matrix(cards: list[Card], record: RunRecord, name: str, metric: str, title: str, said: str) -> None:
    pairs = select(record.frame, name, metric, by=("language", "other_language"))
    if not pairs.empty:
        step = int(pairs["step"].max())
        cards.append(Captioned(directed_matrix(pairs[pairs["step"] == step], f"{title}, step {step}"), said))
