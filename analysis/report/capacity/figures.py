"""Figures of the capacity experiment: rise of sharing by width, by loss, and on the way through training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.report.capacity.runs import CapacityRun, by_size
from analysis.report.explanations import unit_of
from analysis.report.style import add_floor, add_line, base_figure, error_bars
from analysis.statistics import mean_interval


def rise_of(runs: Sequence[CapacityRun]) -> str:
    """What the vertical axis counts."""
    return f"rise, {unit_of('ConceptOverlap', runs[0].metric)}"


def against_capacity(runs: Sequence[CapacityRun]) -> go.Figure:
    """One point a run, and the mean over the seeds of every width with its interval."""
    figure = base_figure("Rise of sharing above the untrained network, by width", rise_of(runs))
    rows = []
    for _, members in by_size(runs):
        of_size = np.array([run.rise for run in members if run.rise is not None])
        rows.append((members[0].width, of_size.mean(), *mean_interval(of_size)))
    means = pd.DataFrame(rows, columns=["width", "value", "low", "high"]).astype(float)
    name = "mean over seeds, 95 %"
    add_line(figure, means["width"], means["value"], name, 0, error_y=error_bars(means))
    widths, rises, names = zip(*((run.width, run.rise, run.record.name) for run in runs), strict=True)
    add_line(figure, widths, rises, "one run", 1, mode="markers", text=names)
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
    figure = base_figure("Rise of sharing by held-out loss at the last snapshot", rise_of(runs))
    for index, (size, members) in enumerate(by_size(runs)):
        losses, rises, names = zip(*((run.bits_per_byte, run.rise, run.record.name) for run in members), strict=True)
        add_line(figure, losses, rises, size, index, mode="markers", text=names)
    figure.update_xaxes(title="bits per byte")
    return figure


def paths(runs: Sequence[CapacityRun], axis: str, label: str) -> go.Figure | None:
    """One line a run over `axis` (bits_per_byte or tokens), sizes told apart by colour; None if there is nothing."""
    figure = base_figure(f"Rise of sharing over {label.partition(',')[0]}", rise_of(runs))
    drawn = set()
    for index, (size, members) in enumerate(by_size(runs)):
        for run in members:
            table = run.path().dropna(subset=[axis, "rise"])
            if axis == "tokens":
                table = table[table[axis] > 0]
            if table.empty:
                continue
            shown = {"legendgroup": size, "showlegend": size not in drawn, "text": [run.record.name] * len(table)}
            add_line(figure, table[axis].astype(float), table["rise"], size, index, **shown)
            drawn.add(size)
    figure.update_xaxes(title=label, type="log" if axis == "tokens" else "linear")
    return figure if drawn else None
