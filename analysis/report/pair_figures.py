"""Plotly figures of measures on pairs of languages: matrices and trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.figure_factory as ff
import plotly.graph_objects as go
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from analysis.report.style import DIVERGING, heatmap, layout

TEXT = 9
"""Size of the numbers in cells, pixels."""
MOST_COLUMNS = 10
"""Columns whose numbers can be read where two figures stand side by side."""


def pair_matrix(
    rows: pd.DataFrame, title: str, *, unit: str = "", directed: bool = False, diverging: bool = False
) -> go.Figure:
    """Language x language matrix of one snapshot; undirected pairs are mirrored and the diagonal stays empty."""
    matrix = pair_table(rows, directed=directed)
    largest = float(np.nanmax(np.abs(matrix.to_numpy()))) if matrix.notna().any().any() else 1.0
    scale = {"colorscale": DIVERGING, "zmin": -largest, "zmax": largest} if diverging else {}
    return _matrix(matrix, title, unit=unit, hover="%{y}, %{x}", decimals=3, **scale)


def directed_matrix(rows: pd.DataFrame, title: str, *, unit: str = "", across: str = "other_language") -> go.Figure:
    """Matrix of values from `language` (down) to the field `across`; the two need not be the same set."""
    matrix = rows.pivot_table(index="language", columns=across, values="value").sort_index()
    return _matrix(matrix, title, unit=unit, hover="%{y} to %{x}", decimals=2)


def _matrix(matrix: pd.DataFrame, title: str, **options: Any) -> go.Figure:
    """A heatmap with the first row above; one of many columns says that it wants the whole width of a page."""
    figure = heatmap(matrix, title, textfont={"size": TEXT}, **options)
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    if matrix.shape[1] > MOST_COLUMNS:
        figure.update_layout(meta={"broad": True}, height=max(380, 120 + 24 * len(matrix)))
    return figure


def pair_table(rows: pd.DataFrame, *, directed: bool = False) -> pd.DataFrame:
    """Square frame of pair values, languages sorted."""
    languages = sorted(set(rows["language"]) | set(rows["other_language"]))
    matrix = pd.DataFrame(np.nan, index=languages, columns=languages)
    for row in rows.itertuples():
        matrix.loc[row.language, row.other_language] = row.value
        if not directed:
            matrix.loc[row.other_language, row.language] = row.value
    return matrix


def change_of_pairs(pairs: pd.DataFrame, before: int, after: int) -> pd.DataFrame:
    """Rows of step `after` of the pairs that both steps have, with the difference as their value."""
    keys = ["language", "other_language"]
    one, other = (pairs[pairs["step"] == step].set_index(keys) for step in (before, after))
    return other.assign(value=other["value"] - one["value"]).reset_index().dropna(subset=["value"])


def dendrogram(rows: pd.DataFrame, title: str) -> go.Figure | None:
    """Average-linkage tree of languages with distance 1 - value; None for fewer than three languages or gaps."""
    matrix = pair_table(rows)
    values = matrix.to_numpy(copy=True)
    np.fill_diagonal(values, 1.0)
    if len(matrix) < 3 or np.isnan(values).any():
        return None
    distance = np.clip(1.0 - values, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    figure = ff.create_dendrogram(
        values,
        labels=list(matrix.index),
        linkagefun=lambda _: linkage(condensed, method="average"),
        color_threshold=0.0,
        colorscale=["#44546a"] * 8,
    )
    figure.update_layout({**layout(title), "width": None, "autosize": True, "showlegend": False})
    figure.update_xaxes(
        range=[0, 10 * len(matrix)], mirror=False, ticks=""
    )  # a leaf every ten units, the first at five
    lowest = float(condensed.min())
    bottom = lowest - 0.1 * (1.0 - lowest)
    figure.update_yaxes(title="1 - share of K", gridcolor="#e8e8e8", range=[bottom, 1.0], mirror=False, ticks="")
    return figure


def is_directed(pairs: pd.DataFrame) -> bool:
    """Pairs are directed if any runs against the alphabet (undirected ones are sorted)."""
    return bool((pairs["language"] >= pairs["other_language"]).any())
