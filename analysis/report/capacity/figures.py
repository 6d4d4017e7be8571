"""Figures of the capacity experiment: rise of sharing by width, by loss, and on the way through training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from scipy import stats

from analysis.report.capacity.runs import CapacityRun, by_size
from analysis.report.style import CHANCE, PALETTE, base_figure


def seed_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds (Student's t); None for one seed."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half


def against_capacity(runs: Sequence[CapacityRun]) -> go.Figure:
    """One point a run, and the mean over the seeds of every width with its interval."""
    figure = base_figure("Rise of sharing above the untrained network, by width", "rise")
    widths, means, above, below = [], [], [], []
    for _, members in by_size(runs):
        rises = [run.rise for run in members if run.rise is not None]
        interval = seed_interval(rises)
        widths.append(members[0].width)
        means.append(float(np.mean(rises)))
        above.append(interval[1] - means[-1] if interval else 0.0)
        below.append(means[-1] - interval[0] if interval else 0.0)
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    figure.add_trace(
        go.Scatter(x=widths, y=means, error_y=bars, mode="lines+markers", name="mean over seeds, 95 %",
                   line={"color": PALETTE[0]}, marker={"size": 9})
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(x=[run.width for run in runs], y=[run.rise for run in runs], mode="markers", name="one run",
                   text=[run.record.name for run in runs], marker={"color": PALETTE[1], "symbol": "x", "size": 8})
    )  # fmt: skip
    figure.add_hline(y=0.0, line={"color": CHANCE, "dash": "dash"}, annotation_text="untrained network")
    figure.update_xaxes(title="width (d_model)", type="log", tickvals=widths, ticktext=[str(w) for w in widths])
    return figure


def against_loss(runs: Sequence[CapacityRun]) -> go.Figure | None:
    """One point a run; None where a run has no held-out loss."""
    if any(run.bits_per_byte is None for run in runs):
        return None
    figure = base_figure("Rise of sharing by held-out loss at the last snapshot", "rise")
    for index, (size, members) in enumerate(by_size(runs)):
        figure.add_trace(
            go.Scatter(x=[run.bits_per_byte for run in members], y=[run.rise for run in members], mode="markers",
                       name=size, text=[run.record.name for run in members],
                       marker={"color": PALETTE[index % len(PALETTE)], "size": 10})
        )  # fmt: skip
    figure.update_xaxes(title="bits per byte")
    return figure


def paths(runs: Sequence[CapacityRun], axis: str, label: str) -> go.Figure | None:
    """One line a run over `axis` (bits_per_byte or tokens), sizes told apart by colour; None if there is nothing."""
    figure = base_figure(f"Rise of sharing over {label.partition(',')[0]}", "rise")
    drawn = set()
    for index, (size, members) in enumerate(by_size(runs)):
        for run in members:
            table = run.path().dropna(subset=[axis, "rise"])
            if axis == "tokens":
                table = table[table[axis] > 0]
            if table.empty:
                continue
            figure.add_trace(
                go.Scatter(x=table[axis].astype(float), y=table["rise"], mode="lines+markers", name=size,
                           legendgroup=size, showlegend=size not in drawn, text=[run.record.name] * len(table),
                           line={"color": PALETTE[index % len(PALETTE)]})
            )  # fmt: skip
            drawn.add(size)
    figure.update_xaxes(title=label, type="log" if axis == "tokens" else "linear")
    return figure if drawn else None
