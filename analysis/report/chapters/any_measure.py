"""The chapter of a measure that has none of its own: every row finds a figure by its shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
import plotly.graph_objects as go

from analysis.base import find_class
from analysis.report import figures as draw
from analysis.report.explanations import explain, heading_of, in_words, trap, unit_of
from analysis.report.figures import select
from analysis.report.page import Captioned, Card, Page
from analysis.report.pair_figures import directed_matrix, is_directed, pair_matrix
from analysis.report.run import RunRecord, analyses_of_class
from analysis.report.tables import Table
from analysis.statistics import benjamini_hochberg


def add_chapter(page: Page, record: RunRecord, name: str) -> None:
    title = heading_of(record.classes.get(name, "")) or in_words(name)
    open_chapter(page, record, name, title, _about(record, name))
    add_figures(page, record, name)


def open_chapter(page: Page, record: RunRecord, name: str, title: str, introduction: str) -> None:
    """Begin a chapter: its question, then how its numbers mislead; named where a class was measured in several ways."""
    class_of = record.classes.get(name, "")
    several = len(analyses_of_class(record, class_of)) > 1
    page.chapter(f"{title} ({name})" if several else title, introduction)
    if warning := trap(class_of):
        page.paragraph(f"How it can mislead: {warning}.")


def beside_own(record: RunRecord, name: str, metric: str, own: str) -> tuple[pd.DataFrame, float | None]:
    """Overall rows of usable steps by step, and what `own` is at the last of them, where there is such a row."""
    rows = record.usable(select(record.frame, name, metric))
    within = select(record.frame, name, own)
    within = within[within["step"] == rows["step"].max()]["value"]
    return rows, float(within.iloc[0]) if len(within) else None


def captioned(record: RunRecord, name: str, metric: str, figure: go.Figure, more: str = "") -> Captioned:
    """A figure above what docs/measures.md says of its metric."""
    return Captioned(figure, explain(record.classes.get(name, ""), metric), more)


def over_training(record: RunRecord, name: str, metric: str, title: str, *, group: str | None = None) -> Card | None:
    """Overall numbers over the snapshots, or a line for each value of the field `group`; None for a single snapshot."""
    rows = select(record.frame, name, metric, by=() if group is None else (group,))
    if rows["step"].nunique() < 2:
        return None
    return captioned(record, name, metric, draw.over_steps(rows, title, unit=_unit(record, name, metric), group=group))


def newest_matrix(
    record: RunRecord, name: str, metric: str, title: str, *, across: str = "other_language"
) -> Card | None:
    """Languages (down) by the field `across` at the newest snapshot; None without such rows."""
    rows = select(record.frame, name, metric, by=("language", across))
    if rows.empty:
        return None
    step = int(rows["step"].max())
    unit = _unit(record, name, metric)
    figure = directed_matrix(rows[rows["step"] == step], f"{title}, step {step}", unit=unit, across=across)
    return captioned(record, name, metric, figure)


def _unit(record: RunRecord, name: str, metric: str) -> str:
    return unit_of(record.classes.get(name, ""), metric)


def add_figures(page: Page, record: RunRecord, name: str, leave_out: Sequence[str] = ()) -> None:
    """Whatever rows an analysis has, drawn by their shape; the largest tables are averaged over pairs and concepts."""
    frame = record.frame[record.frame["analysis"] == name]
    overall = overall_table(record, name)
    if overall is not None:
        page.grid([overall])
    items: list[Card | None] = []
    for metric in frame["metric"].drop_duplicates():
        if metric not in leave_out:
            rows = frame[frame["metric"] == metric]
            for figure, more in _figures_of(rows, name, metric, _unit(record, name, metric)):
                items.append(captioned(record, name, metric, figure, more))
    if len(items) <= 8:
        page.grid(items)
        return
    page.grid(items[:8])
    with page.fold(f"{len(items) - 8} more figures"):
        page.grid(items[8:])


def _figures_of(rows: pd.DataFrame, name: str, metric: str, unit: str) -> Iterable[tuple[go.Figure, str]]:
    """Figures of one metric, and what is to be said of each beside its meaning."""
    title = in_words(metric)
    overall = select(rows, name, metric)
    if overall["step"].nunique() > 1:
        yield draw.over_steps(overall, title, unit=unit), ""
    layers = select(rows, name, metric, by=("layer",))
    averaged = ""
    if layers.empty:
        averaged = "Mean over languages, pairs and kinds of unit."
        layers = rows[rows["layer"].notna() & rows["seed"].isna()]
        moves = layers["value"].nunique() > 1
        layers = layers.groupby(["step", "layer"], as_index=False).agg({"value": "mean", "chance": "mean"})
        layers = layers.assign(low=float("nan"), high=float("nan"))
        if moves and layers["value"].round(9).nunique() == 1:  # shares that sum to 1, such as a matrix of confusions
            layers = layers[:0]
    if not layers.empty:
        if layers["step"].nunique() > 1:
            yield draw.layers_by_steps(layers, f"{title}, layer by training step", unit=unit), averaged
        yield draw.layer_curves(layers, f"{title} by layer", unit=unit), averaged
    languages = select(rows, name, metric, by=("language",))
    if languages["step"].nunique() > 1:
        yield draw.over_steps(languages, f"{title} per language", unit=unit, group="language"), ""
    elif not languages.empty:
        yield draw.by_language(languages, f"{title} by language", unit=unit), ""
    pairs = select(rows, name, metric, by=("language", "other_language"))
    if not pairs.empty:
        step = int(pairs["step"].max())
        newest = pairs[pairs["step"] == step]
        matrix = pair_matrix(newest, f"{title}, step {step}", unit=unit, directed=is_directed(newest))
        yield matrix, significance(rows)


def significance(rows: pd.DataFrame) -> str:
    """How many tests of a measure stand after Benjamini-Hochberg over steps, layers (their mean included) and pairs."""
    tested = rows[rows["p"].notna() & rows["language"].notna() & rows["other_language"].notna()]
    if tested.empty:
        return ""
    q = benjamini_hochberg(tested["p"].to_numpy())
    family = "steps x layers x pairs" if tested["layer"].notna().any() else "steps x pairs"
    return f"{int((q < 0.05).sum()):,} of {len(tested):,} tests ({family}) have q < 0.05 (Benjamini-Hochberg)."


def overall_table(record: RunRecord, name: str) -> Table | None:
    """Overall numbers of an analysis at the first and the last snapshot, with interval and chance."""
    frame = record.frame[record.frame["analysis"] == name]
    steps = sorted({int(frame["step"].min()), int(frame["step"].max())})
    rows = []
    for metric in frame["metric"].drop_duplicates():
        values = select(frame, name, metric).set_index("step")
        if steps[-1] not in values.index:
            continue
        last = values.loc[steps[-1]]
        told = [f"{values.loc[step, 'value']:.4g}" if step in values.index else "" for step in steps]
        interval = "" if pd.isna(last["low"]) else f"[{last['low']:.4g}, {last['high']:.4g}]"
        chance = "" if pd.isna(last["chance"]) else f"{last['chance']:.4g}"
        probability = "" if pd.isna(last["p"]) else f"{last['p']:.2g}"
        rows.append((in_words(metric), *told, interval, chance, probability))
    if not rows:
        return None
    header = ("", *(f"step {step}" for step in steps), "95 % interval", "chance", "p")
    used = [index for index in range(len(header)) if index == 0 or any(row[index] for row in rows)]
    return Table(
        title="Overall numbers",
        header=tuple(header[index] for index in used),
        rows=tuple(tuple(row[index] for index in used) for row in rows),
    )


def _about(record: RunRecord, name: str) -> str:
    """First paragraph of the docstring of the analysis's class, or "" for a class that is not known here."""
    found = find_class(record.classes.get(name, ""))
    text = (found.__doc__ or "") if found is not None else ""
    return " ".join(text.strip().split("\n\n")[0].split())
