"""Plotly figures of result rows; one function a shape of data, used alike by the report and by W&B.

A figure is drawn from a frame with the columns `analysis.results.FRAME_COLUMNS`, restricted to one analysis and one
metric. Every figure that shows a value shows its chance level and, where rows carry them, its interval and the level of
the untrained network (step 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from analysis.report.headlines import FIELDS, layer_label
from analysis.report.style import (
    CHANCE,
    PALETTE,
    START,
    add_floor,
    add_level,
    add_line,
    base_figure,
    error_bars,
    heatmap,
    interval_band,
    over_training,
)

MOST_LAYERS = 13
"""Labels of a horizontal axis of layers: more of them would be written upright."""


def select(frame: pd.DataFrame, analysis: str, metric: str, *, by: Sequence[str] = ()) -> pd.DataFrame:
    """Rows of one metric with exactly the fields `by` set, of `FIELDS`."""
    return with_fields(frame[frame["analysis"] == analysis], metric, by=by)


def with_fields(frame: pd.DataFrame, metric: str, *, by: Sequence[str] = ()) -> pd.DataFrame:
    """The same of a frame of one analysis."""
    rows = frame[frame["metric"] == metric]
    return rows[(rows[list(FIELDS)].notna() == [field in by for field in FIELDS]).all(axis=1)]


def over_steps(rows: pd.DataFrame, title: str, *, unit: str = "", group: str | None = None) -> go.Figure:
    """Lines over the snapshots, with 95 % band, chance (dashed) and the step-0 level (dotted).

    `rows` have one value a step, or one a step and `group` (a column such as `language`).
    """
    figure = base_figure(title, unit)
    over_training(figure)
    if group is not None:
        for index, (name, part) in enumerate(rows.groupby(group, sort=True)):
            part = part.sort_values("step")
            add_line(figure, part["step"].tolist(), part["value"], str(name), index)
        if rows["chance"].nunique() == 1:
            add_floor(figure, float(rows["chance"].dropna().iloc[0]), "chance")
        return figure
    rows = rows.sort_values("step")
    steps = rows["step"].tolist()
    if len(rows) == 1:  # neither a band nor a level has a width
        add_line(figure, steps, rows["value"], "measured", 0, error_y=error_bars(rows))
        if rows["chance"].notna().all():
            add_floor(figure, float(rows["chance"].iloc[0]), "chance")
        return figure
    figure.add_traces(interval_band(steps, rows, PALETTE[0]))
    add_line(figure, steps, rows["value"], "measured", 0)
    if rows["chance"].notna().any():
        add_level(figure, steps, rows["chance"], "chance")
    if steps[0] == 0:
        add_level(figure, steps, [float(rows["value"].iloc[0])] * len(steps), "untrained (step 0)", START, "dot")
    return figure


def by_language(rows: pd.DataFrame, title: str, *, unit: str = "") -> go.Figure:
    """A marker a language and step, with its interval, beside the chance of each language."""
    figure = base_figure(title, unit)
    rows = rows.sort_values(["step", "language"])
    for index, (step, part) in enumerate(rows.groupby("step")):
        error = error_bars(part) if part[["low", "high"]].notna().all(axis=None) else None
        add_line(figure, part["language"], part["value"], f"step {step}", index, mode="markers", error_y=error)
    last = rows[rows["step"] == rows["step"].max()]
    if last["chance"].notna().any():
        chance = {"symbol": "line-ew-open", "size": 14, "color": CHANCE}
        figure.add_trace(go.Scatter(x=last["language"], y=last["chance"], mode="markers", name="chance", marker=chance))
    figure.update_xaxes(type="category")
    return figure


def against_random(rows: pd.DataFrame, band: pd.DataFrame, title: str, *, unit: str = "") -> go.Figure:
    """One measure over training with its interval, beside the range of random networks (or step 0 alone)."""
    figure = over_steps(rows, title, unit=unit)
    if band.empty:
        return figure
    levels = band.groupby("network")["value"].mean()
    steps = sorted(rows["step"].unique().tolist())
    low, high = float(levels.min()), float(levels.max())
    named = f"{len(levels)} random networks"
    if len(steps) == 1:
        figure.add_hrect(y0=low, y1=high, fillcolor=START, opacity=0.3, line_width=0, annotation_text=named)
        return figure
    figure.add_trace(
        go.Scatter(
            x=[steps[0], steps[-1], steps[-1], steps[0]],
            y=[low, low, high, high],
            mode="lines",
            fill="toself",
            fillcolor="rgba(194,87,26,0.18)",
            line={"width": 0},
            hoverinfo="skip",
            name=named,
        )
    )
    return figure


def picked(rows: pd.DataFrame, by: str, title: str, *, unit: str = "") -> go.Figure:
    """One line over training for each value of a column, of which the page shows the one that is chosen."""
    figure = base_figure(title, unit)
    everything = rows.groupby("step", as_index=False)["value"].mean()
    for name, part in rows.groupby(by, sort=True):
        part = part.sort_values("step")
        add_line(figure, part["step"].tolist(), part["value"], str(name), 0, meta={"pick": str(name)})
    add_level(figure, everything["step"].tolist(), everything["value"], "mean")
    over_training(figure)
    return figure


def compare_runs(runs: Mapping[str, pd.DataFrame], title: str, *, unit: str = "", axis: str = "tokens") -> go.Figure:
    """One line a run over tokens seen (log axis); the step-0 value, which has no place there, is a dotted level.

    Levels (chance dashed, untrained dotted) are told by their names on hover: in the legend stand the runs alone.
    """
    figure = base_figure(title, unit)
    chances = {chance for rows in runs.values() for chance in rows["chance"].dropna()}
    if len(chances) == 1:
        add_floor(figure, chances.pop(), "chance")
    for index, (name, rows) in enumerate(runs.items()):
        rows = rows.sort_values("step")
        trained = rows[rows[axis].fillna(0) > 0]
        error = error_bars(trained) if trained[["low", "high"]].notna().all(axis=None) else None
        add_line(figure, trained[axis].astype(float), trained["value"], name, index, error_y=error)
        if chances and len(trained):
            chance = trained[axis].astype(float), trained["chance"]
            add_level(figure, *chance, f"{name}, chance", showlegend=False)
        start = rows[rows["step"] == 0]
        if len(start) and len(trained):
            ends = [float(trained[axis].min()), float(trained[axis].max())]
            level = [float(start["value"].iloc[0])] * 2
            colour = PALETTE[index % len(PALETTE)]
            add_level(figure, ends, level, f"{name}, untrained", colour, "dot", showlegend=False)
    figure.update_xaxes(title="tokens seen" if axis == "tokens" else "optimizer step", type="log")
    return figure


def layers_by_steps(rows: pd.DataFrame, title: str, *, unit: str = "") -> go.Figure:
    """Heatmap of a layer measure: layers upwards, snapshots to the right."""
    table = rows.pivot_table(index="layer", columns="step", values="value").sort_index()
    table.index = [layer_label(int(layer)) for layer in table.index]
    figure = heatmap(table, title, unit=unit, hover="step %{x}, %{y}")
    over_training(figure)
    figure.update_yaxes(title="layer", type="category")
    return figure


def layer_curves(
    rows: pd.DataFrame, title: str, *, unit: str = "", baselines: Mapping[str, pd.DataFrame] | None = None
) -> go.Figure:
    """A layer measure at the first, middle and last snapshot; `baselines` (name -> rows) are drawn for the last one."""
    figure = base_figure(title, unit)
    steps = sorted(rows["step"].unique())
    shown = list(dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]]))
    for index, (colour, step) in enumerate(zip((START, "#7aa6c2", PALETTE[0]), shown, strict=False)):
        part = rows[rows["step"] == step].sort_values("layer")
        layers = _labels(part)
        if step == shown[-1]:
            figure.add_traces(interval_band(layers, part, colour))
        add_line(figure, layers, part["value"], f"step {step}", index, line={"color": colour})
    last = rows[rows["step"] == shown[-1]].sort_values("layer")
    if last["chance"].notna().any():
        add_level(figure, _labels(last), last["chance"], "chance")
    for index, (name, base) in enumerate((baselines or {}).items()):
        part = base[base["step"] == shown[-1]].sort_values("layer")
        colour = PALETTE[(index + 4) % len(PALETTE)]
        if part.empty:
            continue
        if part["layer"].isna().all():
            add_floor(figure, float(part["value"].mean()), name, colour, "dashdot")
        else:
            add_level(figure, _labels(part), part["value"], name, colour, "dashdot")
    figure.update_xaxes(title="layer", type="category", nticks=MOST_LAYERS)
    return figure


def profile(rows: pd.DataFrame, band: pd.DataFrame, title: str, *, unit: str = "") -> go.Figure:
    """Bars per layer at the first and the last snapshot beside the chance profile and the range of random networks."""
    figure = base_figure(title, unit)
    steps = sorted(rows["step"].unique())
    for colour, step in zip((START, PALETTE[0]), dict.fromkeys([steps[0], steps[-1]]), strict=False):
        part = rows[rows["step"] == step].sort_values("layer")
        figure.add_trace(go.Bar(x=_labels(part), y=part["value"], name=f"step {step}", marker={"color": colour}))
    last = rows[rows["step"] == steps[-1]].sort_values("layer")
    if last["chance"].notna().any():
        add_level(figure, _labels(last), last["chance"], "chance")
    if not band.empty:
        span = band.groupby("layer", as_index=False)["value"].agg(low="min", high="max")
        named = f"{band['network'].nunique()} random networks"
        figure.add_traces(interval_band(_labels(span), span, START, named))
    figure.update_layout(barmode="group")
    figure.update_xaxes(title="layer", type="category", nticks=MOST_LAYERS)
    return figure


def _labels(rows: pd.DataFrame) -> list[str]:
    return [layer_label(int(layer)) for layer in rows["layer"]]


def history_lines(history: pd.DataFrame, prefix: str, title: str, *, unit: str = "") -> go.Figure:
    """Training scalars `prefix/<name>` over steps, one line a name."""
    figure = base_figure(title, unit)
    rows = history[history["key"].str.startswith(prefix + "/")]
    names = sorted(rows["key"].str.removeprefix(prefix + "/").unique(), key=lambda name: (name == "mean", name))
    for index, name in enumerate(names):
        part = rows[rows["key"] == f"{prefix}/{name}"].drop_duplicates("step", keep="last").sort_values("step")
        if name == "mean":
            add_level(figure, part["step"], part["value"], name)
            continue
        mode = "lines+markers" if len(part) < 40 else "lines"
        add_line(figure, part["step"], part["value"], name, index, mode=mode)
    over_training(figure)
    return figure
