"""Figures of the capacity experiment: rise of sharing by width, by loss, and on the way through training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.report.capacity.runs import CapacityRun, by_size
from analysis.report.style import PALETTE, add_floor, base_figure, error_bars
from analysis.statistics import mean_interval


def against_capacity(runs: Sequence[CapacityRun]) -> go.Figure:
    """One point a run, and the mean over the seeds of every width with its interval."""
    figure = base_figure("Rise of sharing above the untrained network, by width", "rise")
    rows = []
    for _, members in by_size(runs):
        rises = np.array([run.rise for run in members if run.rise is not None])
        rows.append((members[0].width, rises.mean(), *mean_interval(rises)))
    means = pd.DataFrame(rows, columns=["width", "value", "low", "high"]).astype(float)
    figure.add_trace(
        go.Scatter(x=means["width"], y=means["value"], error_y=error_bars(means), mode="lines+markers",
                   name="mean over seeds, 95 %", line={"color": PALETTE[0]}, marker={"size": 9})
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(x=[run.width for run in runs], y=[run.rise for run in runs], mode="markers", name="one run",
                   text=[run.record.name for run in runs], marker={"color": PALETTE[1], "symbol": "x", "size": 8})
    )  # fmt: skip
    add_floor(figure, 0.0, "untrained network")
    figure.update_xaxes(
        title="width (d_model)",
        type="log",
        tickvals=means["width"],
        ticktext=[f"{width:g}" for width in means["width"]],
    )
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
