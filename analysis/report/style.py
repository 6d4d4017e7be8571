"""The house style of figures: colours, an empty figure, the band of an interval."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#006644", "#77bbaa")
"""After Paul Tol's bright scheme; the nearest two are 14 apart (CIEDE2000) also under protanopia and deuteranopia."""
DASHES = ("solid", "dot", "longdash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star", "pentagon")
CHANCE = "#8d8d8d"
START = "#c2571a"
SEQUENTIAL = "Cividis"
DIVERGING = "RdBu_r"
BARE = go.layout.Template()
"""In place of plotly's own template, which is 7 kB a figure and takes half of the time of making one."""


def base_figure(title: str, unit: str) -> go.Figure:
    """An empty figure in the house style; `unit` names the vertical axis."""
    horizontal = {"gridcolor": "#efefef", "linecolor": "#999", "zeroline": False}
    vertical = {"gridcolor": "#e8e8e8", "linecolor": "#999", "zeroline": False, "title": {"text": unit}}
    return go.Figure(layout={**layout(title), "xaxis": horizontal, "yaxis": vertical})


def layout(title: str) -> dict:
    """Fonts, margins and colours of every figure."""
    return {
        "title": {"text": title, "font": {"size": 14}, "x": 0.01, "xanchor": "left"},
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12, "color": "#222"},
        "margin": {"l": 62, "r": 44, "t": 46, "b": 48},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "height": 380,
        "legend": {"font": {"size": 11}},
        "modebar": {"orientation": "v"},
        "colorway": list(PALETTE),
        "template": BARE,
    }


def line_style(index: int) -> dict:
    """Colour, dash and marker of the n-th line of a figure: no two of the first 24 look alike in print, either."""
    line = {"color": PALETTE[index % len(PALETTE)], "dash": DASHES[index // len(PALETTE) % len(DASHES)]}
    return {"mode": "lines+markers", "line": line, "marker": {"symbol": MARKERS[index % len(MARKERS)], "size": 7}}


def over_training(figure: go.Figure) -> None:
    """Name the horizontal axis of a figure over steps; the report offers such figures on other axes, too."""
    figure.update_xaxes(title="optimizer step")
    figure.update_layout(meta={"axis": "step"})


def add_line(figure: go.Figure, x: Sequence, y: Sequence, name: str, index: int, **options: Any) -> None:
    """The n-th measured line of a figure; `options` of the trace win over its style."""
    figure.add_trace(go.Scatter(x=x, y=y, name=name, **line_style(index) | options))


def add_level(
    figure: go.Figure,
    x: Sequence,
    y: Sequence,
    name: str,
    colour: str = CHANCE,
    dash: str = "dash",
    showlegend: bool = True,
) -> None:
    """A line without markers beside what was measured: chance, or an untrained network."""
    line = {"color": colour, "dash": dash}
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines", name=name, line=line, showlegend=showlegend))


def add_floor(figure: go.Figure, y: float, name: str, colour: str = CHANCE, dash: str = "dash") -> None:
    """A level across the whole figure, named at its end."""
    figure.add_hline(y=y, line={"color": colour, "dash": dash}, annotation_text=name)


def error_bars(rows: pd.DataFrame) -> dict:
    """Bars from `low` to `high` around `value`."""
    above, below = rows["high"] - rows["value"], rows["value"] - rows["low"]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}


def heatmap(
    table: pd.DataFrame, title: str, *, unit: str, hover: str, decimals: int | None = None, **options: Any
) -> go.Figure:
    """A figure of a table, its index down and its columns across; `decimals` writes the values into the cells.

    The page leaves them out where a cell is too narrow for them.
    """
    text = None if decimals is None else table.map(lambda v: _short(v, decimals)).to_numpy()
    cells = go.Heatmap(
        z=table.to_numpy(),
        x=list(table.columns),
        y=list(table.index),
        text=text,
        texttemplate="%{text}" if text is not None else None,
        colorbar={"title": {"text": unit, "side": "right"}, "thickness": 12},
        hovertemplate=f"{hover}: %{{z:.4g}}<extra></extra>",
        **{"colorscale": SEQUENTIAL} | options,
    )
    figure = base_figure(title, "")
    figure.add_trace(cells)
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    return figure


def _short(value: float, decimals: int) -> str:
    """`.021` for 0.021, so that more of it fits into a cell."""
    return "" if pd.isna(value) else re.sub(r"^(-?)0\.", r"\1.", f"{value:.{decimals}f}")


def interval_band(
    x: Sequence[str] | Sequence[int], rows: pd.DataFrame, colour: str, name: str = "95 % interval"
) -> list[go.Scatter]:
    """The area between `low` and `high` of the rows over `x`; nothing if any of them has no interval."""
    if rows["low"].isna().any() or rows["high"].isna().any():
        return []
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    band = go.Scatter(
        x=[*x, *x[::-1]],
        y=[*rows["high"], *rows["low"][::-1]],
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.18)",
        line={"width": 0},
        hoverinfo="skip",
        name=name,
    )
    return [band]
