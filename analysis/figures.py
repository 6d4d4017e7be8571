"""Plotly figures of result rows; one function a shape of data, used alike by the report and by W&B.

A figure is drawn from a frame with the columns `analysis.results.FRAME_COLUMNS`, restricted to one analysis and one
metric. Every figure that shows a value shows its chance level and, where rows carry them, its interval and the level of
the untrained network (step 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.figure_factory as ff
import plotly.graph_objects as go
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from analysis.headlines import layer_label

PALETTE = (
    "#2f6db3", "#d9822b", "#2e8b6f", "#b3446c", "#7b5ea7", "#8a6d3b", "#c94f4f", "#4fa3b8", "#6b8e23", "#5b6770",
    "#e0a526", "#4454a3", "#a65fb0", "#1f9e9e", "#9c3d2e", "#7fa650", "#c77fa8", "#3d5a50",
)  # fmt: skip
CHANCE = "#8d8d8d"
START = "#c2571a"
SEQUENTIAL = "Cividis"
DIVERGING = "RdBu_r"


def select(
    frame: pd.DataFrame, analysis: str, metric: str, *, by: Sequence[str] = (), kind: str | None = None
) -> pd.DataFrame:
    """Rows of one metric with exactly the fields `by` set (of layer, kind, concept, language, other_language, seed)."""
    rows = frame[(frame["analysis"] == analysis) & (frame["metric"] == metric)]
    for field in ("layer", "kind", "concept", "language", "other_language", "seed"):
        rows = rows[rows[field].notna() if field in by else rows[field].isna()]
    return rows if kind is None else rows[rows["kind"] == kind]


def over_steps(rows: pd.DataFrame, title: str, *, unit: str = "", group: str | None = None) -> go.Figure:
    """Lines over the snapshots, with 95 % band, chance (dashed) and the step-0 level (dotted).

    `rows` have one value a step, or one a step and `group` (a column such as `language`).
    """
    figure = base_figure(title, unit)
    groups = [(None, rows)] if group is None else list(rows.groupby(group, sort=True))
    for index, (name, part) in enumerate(groups):
        part = part.sort_values("step")
        colour = PALETTE[index % len(PALETTE)]
        steps = _labels(part["step"])
        if group is None and part["low"].notna().all() and part["high"].notna().all():
            figure.add_trace(
                go.Scatter(
                    x=steps + steps[::-1],
                    y=[*part["high"], *part["low"][::-1]],
                    mode="lines",
                    fill="toself",
                    fillcolor=_transparent(colour, 0.18),
                    line={"width": 0},
                    hoverinfo="skip",
                    name="95 % interval",
                )
            )
        figure.add_trace(
            go.Scatter(
                x=steps, y=part["value"], mode="lines+markers", name=str(name or "measured"), line={"color": colour}
            )
        )
        if group is None:
            if part["chance"].notna().any():
                figure.add_trace(
                    go.Scatter(
                        x=steps, y=part["chance"], mode="lines", name="chance", line={"color": CHANCE, "dash": "dash"}
                    )
                )
            start = part[part["step"] == 0]["value"]
            if len(start) == 1 and len(part) > 1:
                figure.add_trace(
                    go.Scatter(
                        x=steps,
                        y=[float(start.iloc[0])] * len(steps),
                        mode="lines",
                        name="untrained (step 0)",
                        line={"color": START, "dash": "dot"},
                    )
                )
    if group is not None and rows["chance"].notna().any() and rows["chance"].nunique() == 1:
        figure.add_hline(
            y=float(rows["chance"].iloc[0]), line={"color": CHANCE, "dash": "dash"}, annotation_text="chance"
        )
    figure.update_xaxes(title="optimizer step", type="category")
    return figure


def compare_runs(runs: Mapping[str, pd.DataFrame], title: str, *, unit: str = "", axis: str = "tokens") -> go.Figure:
    """One line a run over tokens seen (log axis); the step-0 value, which has no place there, is a dotted level."""
    figure = base_figure(title, unit)
    for index, (name, rows) in enumerate(runs.items()):
        colour = PALETTE[index % len(PALETTE)]
        rows = rows.sort_values("step")
        trained = rows[rows[axis].fillna(0) > 0]
        error = None
        if trained["low"].notna().all() and trained["high"].notna().all():
            error = {
                "type": "data",
                "symmetric": False,
                "array": trained["high"] - trained["value"],
                "arrayminus": trained["value"] - trained["low"],
                "thickness": 1,
            }
        figure.add_trace(
            go.Scatter(
                x=trained[axis].astype(float),
                y=trained["value"],
                error_y=error,
                mode="lines+markers",
                name=name,
                line={"color": colour},
            )
        )
        start = rows[rows["step"] == 0]
        if len(start) and len(trained):
            figure.add_trace(
                go.Scatter(
                    x=[float(trained[axis].min()), float(trained[axis].max())],
                    y=[float(start["value"].iloc[0])] * 2,
                    mode="lines",
                    name=f"{name}, untrained",
                    line={"color": colour, "dash": "dot"},
                )
            )
    figure.update_xaxes(title="tokens seen" if axis == "tokens" else "optimizer step", type="log")
    return figure


def layers_by_steps(rows: pd.DataFrame, title: str, *, unit: str = "") -> go.Figure:
    """Heatmap of a layer measure: layers upwards, snapshots to the right."""
    table = rows.pivot_table(index="layer", columns="step", values="value").sort_index()
    figure = base_figure(title, "")
    figure.add_trace(
        go.Heatmap(
            z=table.to_numpy(),
            x=[str(step) for step in table.columns],
            y=[layer_label(int(layer)) for layer in table.index],
            colorscale=SEQUENTIAL,
            colorbar={"title": unit, "thickness": 12},
            hovertemplate="step %{x}, %{y}: %{z:.4g}<extra></extra>",
        )
    )
    figure.update_xaxes(title="optimizer step", type="category")
    figure.update_yaxes(title="layer", type="category")
    return figure


def layer_curves(
    rows: pd.DataFrame, title: str, *, unit: str = "", baselines: Mapping[str, pd.DataFrame] | None = None
) -> go.Figure:
    """A layer measure at the first, middle and last snapshot; `baselines` (name -> rows) are drawn for the last one."""
    figure = base_figure(title, unit)
    steps = sorted(rows["step"].unique())
    shown = list(dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]]))
    for colour, step in zip((START, "#7aa6c2", PALETTE[0]), shown, strict=False):
        part = rows[rows["step"] == step].sort_values("layer")
        layers = [layer_label(int(layer)) for layer in part["layer"]]
        if part["low"].notna().all() and part["high"].notna().all() and step == shown[-1]:
            figure.add_trace(
                go.Scatter(
                    x=layers + layers[::-1],
                    y=[*part["high"], *part["low"][::-1]],
                    mode="lines",
                    fill="toself",
                    fillcolor=_transparent(colour, 0.15),
                    line={"width": 0},
                    hoverinfo="skip",
                    name="95 % interval",
                )
            )
        figure.add_trace(
            go.Scatter(x=layers, y=part["value"], mode="lines+markers", name=f"step {step}", line={"color": colour})
        )
    last = rows[rows["step"] == shown[-1]].sort_values("layer")
    if last["chance"].notna().any():
        figure.add_trace(
            go.Scatter(
                x=[layer_label(int(layer)) for layer in last["layer"]],
                y=last["chance"],
                mode="lines",
                name="chance",
                line={"color": CHANCE, "dash": "dash"},
            )
        )
    for index, (name, base) in enumerate((baselines or {}).items()):
        part = base[base["step"] == shown[-1]].sort_values("layer")
        colour = PALETTE[(index + 4) % len(PALETTE)]
        if part.empty:
            continue
        if part["layer"].isna().all():
            figure.add_hline(
                y=float(part["value"].mean()), line={"dash": "dashdot", "color": colour}, annotation_text=name
            )
            continue
        figure.add_trace(
            go.Scatter(
                x=[layer_label(int(layer)) for layer in part["layer"]],
                y=part["value"],
                mode="lines",
                name=name,
                line={"dash": "dashdot", "color": colour},
            )
        )
    figure.update_xaxes(title="layer", type="category")
    return figure


def pair_matrix(
    rows: pd.DataFrame, title: str, *, unit: str = "", directed: bool = False, diverging: bool = False
) -> go.Figure:
    """Language x language matrix of one snapshot; undirected pairs are mirrored and the diagonal stays empty."""
    matrix = pair_table(rows, directed=directed)
    largest = float(np.nanmax(np.abs(matrix.to_numpy()))) if matrix.notna().any().any() else 1.0
    figure = base_figure(title, "")
    figure.add_trace(
        go.Heatmap(
            z=matrix.to_numpy(),
            x=list(matrix.columns),
            y=list(matrix.index),
            colorscale=DIVERGING if diverging else SEQUENTIAL,
            zmin=-largest if diverging else None,
            zmax=largest if diverging else None,
            text=matrix.map(lambda v: "" if pd.isna(v) else f"{v:.3f}").to_numpy() if len(matrix) <= 18 else None,
            texttemplate="%{text}",
            textfont={"size": 9},
            colorbar={"title": unit, "thickness": 12},
            hovertemplate="%{y}, %{x}: %{z:.4g}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed", scaleanchor="x")
    return figure


def directed_matrix(rows: pd.DataFrame, title: str, *, unit: str = "") -> go.Figure:
    """Matrix of values from `language` (down) to `other_language` (across); the two need not be the same set."""
    matrix = rows.pivot_table(index="language", columns="other_language", values="value").sort_index()
    figure = base_figure(title, "")
    figure.add_trace(
        go.Heatmap(
            z=matrix.to_numpy(),
            x=list(matrix.columns),
            y=list(matrix.index),
            colorscale=SEQUENTIAL,
            text=matrix.map(lambda v: "" if pd.isna(v) else f"{v:.2f}").to_numpy(),
            texttemplate="%{text}",
            colorbar={"title": unit, "thickness": 12},
            hovertemplate="%{y} to %{x}: %{z:.4g}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
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
    figure.update_layout({**_layout(title), "width": None, "autosize": True, "showlegend": False})
    figure.update_xaxes(range=[0, 10 * len(matrix)])  # a leaf every ten units, the first at five
    lowest = float(condensed.min())
    figure.update_yaxes(title="1 - shared", gridcolor="#e8e8e8", range=[lowest - 0.1 * (1.0 - lowest), 1.0])
    return figure


def profile(rows: pd.DataFrame, title: str, *, unit: str = "") -> go.Figure:
    """Bars per layer at the first and the last snapshot beside the chance profile."""
    figure = base_figure(title, unit)
    steps = sorted(rows["step"].unique())
    for colour, step in zip((START, PALETTE[0]), dict.fromkeys([steps[0], steps[-1]]), strict=False):
        part = rows[rows["step"] == step].sort_values("layer")
        figure.add_trace(
            go.Bar(
                x=[layer_label(int(layer)) for layer in part["layer"]],
                y=part["value"],
                name=f"step {step}",
                marker={"color": colour},
            )
        )
    last = rows[rows["step"] == steps[-1]].sort_values("layer")
    if last["chance"].notna().any():
        figure.add_trace(
            go.Scatter(
                x=[layer_label(int(layer)) for layer in last["layer"]],
                y=last["chance"],
                mode="lines+markers",
                name="chance",
                line={"color": CHANCE, "dash": "dash"},
            )
        )
    figure.update_layout(barmode="group")
    figure.update_xaxes(title="layer", type="category")
    return figure


def history_lines(history: pd.DataFrame, prefix: str, title: str, *, unit: str = "") -> go.Figure:
    """Training scalars `prefix/<name>` over steps, one line a name."""
    figure = base_figure(title, unit)
    rows = history[history["key"].str.startswith(prefix + "/")]
    for index, (key, part) in enumerate(rows.groupby("key", sort=True)):
        part = part.drop_duplicates("step", keep="last").sort_values("step")
        figure.add_trace(
            go.Scatter(
                x=part["step"],
                y=part["value"],
                mode="lines+markers" if len(part) < 40 else "lines",
                name=str(key).removeprefix(prefix + "/"),
                line={"color": PALETTE[index % len(PALETTE)]},
            )
        )
    figure.update_xaxes(title="optimizer step")
    return figure


def live_figures(frame: pd.DataFrame) -> dict[str, go.Figure]:
    """Figures for a live page: for every analysis one layer x step heatmap a metric and the newest pair matrices."""
    figures: dict[str, go.Figure] = {}
    for (analysis, metric), rows in frame.groupby(["analysis", "metric"], sort=True):
        layers = select(rows, analysis, metric, by=("layer",))
        if not layers.empty and layers["step"].nunique() > 1:
            figures[f"figures/{analysis}/{metric}_layers"] = layers_by_steps(layers, f"{analysis}: {metric}")
        pairs = select(rows, analysis, metric, by=("language", "other_language"))
        if not pairs.empty:
            newest = pairs[pairs["step"] == pairs["step"].max()]
            title = f"{analysis}: {metric}, step {newest['step'].iloc[0]}"
            figures[f"figures/{analysis}/{metric}_pairs"] = pair_matrix(newest, title, directed=is_directed(newest))
    return figures


def is_directed(pairs: pd.DataFrame) -> bool:
    """Pairs are directed if any runs against the alphabet (undirected ones are sorted)."""
    return bool((pairs["language"] >= pairs["other_language"]).any())


def base_figure(title: str, unit: str) -> go.Figure:
    """An empty figure in the house style; `unit` names the vertical axis."""
    figure = go.Figure(layout=_layout(title))
    figure.update_xaxes(gridcolor="#efefef", linecolor="#999", zeroline=False)
    figure.update_yaxes(gridcolor="#e8e8e8", linecolor="#999", zeroline=False, title=unit)
    return figure


def _layout(title: str) -> dict:
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
    }


def _labels(steps: pd.Series) -> list[str]:
    return [str(step) for step in steps]


def _transparent(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
