"""Sharing against capacity: the report of a family of runs that differ in size and seed, on one page.

The verdict follows from one exact test (`analysis.trend`): does the rise of sharing above the untrained network fall
with the width of the model, as the compression hypothesis predicts? It says so, says the opposite, says that no trend
is shown, or that there are too few runs to tell. Losses stand beside it, since a larger model also learns more in the
same steps. Called by `callbacks.capacity`.

Shapes:  R runs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from scipy import stats

from analysis.capacity import CapacityRun, by_size, common_loss, read_family
from analysis.figures import CHANCE, PALETTE, base_figure
from analysis.page import Page
from analysis.tables import Table
from analysis.trend import Trend, trend_test

ALPHA = 0.05
ABOUT = (
    "Runs with the same text, tokenizer and steps; what differs is the width, and among runs of one width the seed of "
    "weights and order. Rise: share of the top K concept neurons that two languages have in common, minus the same in "
    "the untrained network on the same sentences, divided by 1 - chance. K is a share of all units. Measures that grow "
    "with the number of units or directions are left out or divided by it."
)


def write_capacity_report(members: Sequence[tuple[str, int, str | Path]], out: str | Path, title: str) -> list[Table]:
    """Write the page to `out`; returns the tables that it begins with.

    Args:
        members: (size, seed, run folder) of every finished run.

    Raises:
        FileNotFoundError, ValueError: see `read_family`; or no run was measured against its untrained network.
    """
    runs = read_family(members)
    measured = [run for run in runs if run.rise is not None]
    if not measured:
        raise ValueError("no run has concept overlap at step 0 and later; put ConceptOverlap into the list of analyses")
    trends = find_trends(measured)
    page = Page(title)
    page.chapter("Sharing against capacity", ABOUT)
    page.verdict(verdict(trends["rise"][1], measured))
    tables = [_size_table(runs), _trend_table(trends)]
    page.grid(tables)
    page.grid([_against_capacity(measured), _against_loss(measured)])
    page.chapter(
        "Capacity or loss?",
        "Each line is a run on its way from the untrained network (right) to its last snapshot (left): if the lines of "
        "all sizes lie upon each other, sharing goes with the loss, whatever the size.",
    )
    page.grid([_paths(measured, "bits_per_byte", "held-out loss, bits per byte"), _paths(measured, "tokens", "tokens")])
    page.chapter("Every run")
    page.grid([_run_table(runs)])
    page.write(Path(out))
    return tables


def find_trends(runs: Sequence[CapacityRun]) -> dict[str, tuple[str, Trend]]:
    """The tests by name, each with what it asks; `rise` is the one that the verdict follows."""
    trends: dict[str, tuple[str, Trend]] = {}

    def add(name: str, question: str, x: Callable[[CapacityRun], float | None], y: str | float, block: str) -> None:
        points = []
        for run in runs:
            value = run.rise_at_loss(y) if isinstance(y, float) else getattr(run, y)
            across = x(run)
            if value is not None and across is not None:
                points.append((across, value, getattr(run, block)))
        if len(points) > 1:
            first, second, blocks = zip(*points, strict=True)
            trends[name] = question, trend_test(first, second, blocks)

    add("rise", "rise of sharing with width", lambda run: run.width, "rise", "seed")
    loss = common_loss(runs)
    if loss is not None:
        question = f"rise with width, where the loss first reaches {loss:.3f} bits per byte"
        add("rise_at_loss", question, lambda run: run.width, loss, "seed")
    add("loss", "held-out loss with width", lambda run: run.width, "bits_per_byte", "seed")
    add(
        "rise_by_loss",
        "rise with held-out loss, among seeds of one width",
        lambda run: run.bits_per_byte,
        "rise",
        "size",
    )
    return trends


def verdict(trend: Trend, runs: Sequence[CapacityRun]) -> str:
    """One sentence on the compression hypothesis, and on what it rests."""
    sizes, seeds = len({run.size for run in runs}), len({run.seed for run in runs})
    basis = f"{sizes} sizes, {seeds} seed{'s' if seeds != 1 else ''}, {trend.num_runs} runs"
    figures = f"Spearman {trend.correlation:+.2f}, exact p {trend.p:.3g}"
    if not trend.decided(ALPHA):
        return (
            f"Too few runs to tell ({basis}): the most extreme outcome would have had p {trend.smallest_p:.2g}. "
            f"Seen: {figures}. Add seeds."
        )
    if trend.p > ALPHA:
        return f"No trend of sharing with capacity is shown ({basis}; {figures})."
    if trend.correlation < 0:
        return (
            f"Sharing rises more in smaller models ({basis}; {figures}), as the compression hypothesis predicts. "
            "Read it beside the same test at equal loss."
        )
    return f"Sharing rises more in larger models ({basis}; {figures}), against the compression hypothesis."


def seed_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds (Student's t); None for one seed."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half


def _size_table(runs: Sequence[CapacityRun]) -> Table:
    columns: dict[str, Callable[[CapacityRun], float | None]] = {
        "bits per byte": lambda run: run.bits_per_byte,
        "shared, step 0": lambda run: run.change.first if run.change else None,
        "shared, last": lambda run: run.change.last if run.change else None,
        "kappa": lambda run: run.overall("ConceptOverlap", "kappa"),
        "normalized": lambda run: run.overall("ConceptOverlap", "normalized"),
        "directions shared": lambda run: run.overall("Compression", "sharing"),
        "effective rank / width": lambda run: _per_width(run, run.overall("Compression", "effective_rank")),
    }
    found = {name: [column(run) for run in runs] for name, column in columns.items()}
    shown = {name: column for name, column in columns.items() if any(value is not None for value in found[name])}
    rows = []
    for size, members in by_size(runs):
        first = members[0]
        sizes = first.parameters
        rises = [run.rise for run in members if run.rise is not None]
        rows.append(
            (
                size,
                str(first.width),
                str(len(members)),
                "" if first.num_units is None else f"{first.num_units:,}",
                "" if sizes is None else f"{sizes[0]:,} ({sizes[1]:,})",
                "" if first.tokens is None else f"{first.tokens:,}",
                "" if first.chance is None else f"{first.chance:.4f}",
                *(_mean([column(run) for run in members]) for column in shown.values()),
                _with_interval(rises),
            )
        )
    return Table(
        title="By size",
        header=(
            "size", "width", "seeds", "units N", "parameters (without embeddings)", "tokens", "chance K/N", *shown,
            "rise [95 % over seeds]",
        ),
        rows=tuple(rows),
        note="Means over seeds at the last snapshot.",
    )  # fmt: skip


def _trend_table(trends: dict[str, tuple[str, Trend]]) -> Table:
    rows = tuple(
        (question, str(trend.num_runs), f"{trend.correlation:+.3f}", f"{trend.p:.4f}", f"{trend.smallest_p:.4f}")
        for question, trend in trends.values()
    )
    return Table(
        title="Rank correlations",
        header=("question", "runs", "Spearman", "exact p, two-sided", "smallest possible p"),
        rows=rows,
        note="Sizes are exchanged among runs of one seed (last line: losses among runs of one size); not corrected for "
        "the number of questions, of which the first is the one that was asked.",
    )


def _run_table(runs: Sequence[CapacityRun]) -> Table:
    rows = []
    for run in runs:
        change = run.change
        rows.append(
            (
                run.record.name,
                str(run.width),
                str(run.seed),
                str(run.last_step),
                _number(run.bits_per_byte),
                "" if change is None else _number(change.first),
                "" if change is None else _number(change.last),
                "" if change is None else f"{change.difference:+.4f} [{change.low:+.4f}, {change.high:+.4f}]",
                "" if change is None else change.verdict,
            )
        )
    return Table(
        title="Shared concept neurons of every run",
        header=("run", "width", "seed", "step", "bits per byte", "shared, step 0", "shared, last",
                "difference [95 % over concepts]", ""),
        rows=tuple(rows),
    )  # fmt: skip


def _against_capacity(runs: Sequence[CapacityRun]) -> go.Figure:
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


def _against_loss(runs: Sequence[CapacityRun]) -> go.Figure | None:
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


def _paths(runs: Sequence[CapacityRun], axis: str, label: str) -> go.Figure | None:
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


def _per_width(run: CapacityRun, value: float | None) -> float | None:
    return None if value is None else value / run.width


def _with_interval(values: Sequence[float]) -> str:
    interval = seed_interval(values)
    if not values:
        return ""
    spread = f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else " (one seed)"
    return f"{float(np.mean(values)):+.4f}{spread}"


def _mean(values: Sequence[float | None]) -> str:
    kept = [value for value in values if value is not None]
    return _number(float(np.mean(kept))) if kept else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
