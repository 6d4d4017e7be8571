"""Sharing against capacity: the report of a family of runs that differ in size and seed, on one page.

The verdict follows from one exact test (`analysis.report.capacity.trend`): does the rise of sharing above the untrained
network fall with the width of the model, as the compression hypothesis predicts? It says so, says the opposite, says
that no trend is shown, or that there are too few runs to tell. Losses stand beside it, since a larger model also learns
more in the same steps.

Shapes:  R runs
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import t

from analysis.report.capacity.figures import against_capacity, against_loss, paths
from analysis.report.capacity.runs import CapacityRun, by_size, common_loss, read_family
from analysis.report.capacity.trend import Trend, trend_test
from analysis.report.changes import DECISIVE
from analysis.report.explanations import heading_of
from analysis.report.page import Page
from analysis.report.run import analyses_of_class, differing
from analysis.report.tables import Table, number, p_value, with_interval
from analysis.statistics import POWER, mean_interval, smallest_visible

ALPHA = 0.05
ABOUT = (
    "Runs with the same text, tokenizer and steps; what differs is the width, and among runs of one width the seed of "
    "weights and order. Rise: what a unit's AP for a concept in one language says of its AP in another language on "
    "other sentences (rank_transfer), minus the same in random networks; results without it use the share of common "
    "experts on the same sentences, divided by 1 - chance. Measures whose null depends on the size are left out."
)


def write_capacity_report(folders: Sequence[str | Path], out: str | Path) -> tuple[str, Table, Table]:
    """Write the page to `out`; returns the verdict, the table of sizes and the table of trends.

    Args:
        folders: run folders; those whose training has not ended are named and left out.

    Raises:
        FileNotFoundError, ValueError: see `read_family` and `refuse_mixture`; or fewer than two runs were measured
            against their untrained network.
    """
    runs = read_family(folders)
    measured = [run for run in runs if run.rise is not None]
    if len(measured) < 2:
        raise ValueError(
            f"{len(measured)} of {len(runs)} finished runs have concept overlap of an untrained and of a trained "
            "network; at least two are compared: name more runs, or put ConceptOverlap into their list of analyses"
        )
    refuse_mixture(measured)
    trends = find_trends(measured)
    page = Page(f"Capacity: {Path(out).stem}")
    page.chapter("Sharing against capacity", ABOUT)
    said, sizes, tests = verdict(trends["rise"][1], measured), _size_table(runs), _trend_table(trends)
    page.verdicts([said])
    for sentence in incomparable(runs):
        page.paragraph(sentence)
    page.grid([sizes])
    page.grid([tests])
    page.grid([against_capacity(measured), against_loss(measured)])
    page.chapter(
        "Capacity or loss?",
        "Each line is a run on its way from the untrained network (right) to its last snapshot (left): if the lines of "
        "all sizes lie upon each other, sharing goes with the loss, whatever the size.",
    )
    page.grid([paths(measured, "bits_per_byte", "held-out loss, bits per byte"), paths(measured, "tokens", "tokens")])
    page.chapter("Every run")
    page.grid([_run_table(runs)])
    page.write(Path(out))
    return said, sizes, tests


def refuse_mixture(runs: Sequence[CapacityRun]) -> None:
    """A rise of one measure and a rise of another are no trend.

    Raises:
        ValueError: some runs have the held-out statistic and others do not.
    """
    one = next((run for run in runs if run.metric != runs[0].metric), None)
    if one is not None:
        new, old = sorted((runs[0], one), key=lambda run: run.metric != DECISIVE)
        raise ValueError(
            f"{new.record.folder} has {new.metric}, {old.record.folder} only {old.metric}: their rises do not compare; "
            f"measure the second again with the list of the first (python -m analysis run), or leave it out"
        )


def incomparable(runs: Sequence[CapacityRun]) -> list[str]:
    """What the results of single runs, or of all of them, differ in, a sentence each."""
    said = [f"{run.record.name}: {sentence}" for run in runs for sentence in run.record.warnings]
    for class_of in ("ConceptOverlap", "HeldOutLoss"):
        first = [(run.record, names[0]) for run in runs if (names := analyses_of_class(run.record, class_of))]
        if keys := differing(first):
            said.append(f"{heading_of(class_of) or class_of} was measured with different settings: {', '.join(keys)}.")
    return said


def find_trends(runs: Sequence[CapacityRun]) -> dict[str, tuple[str, Trend]]:
    """The tests by name, each with what it asks; `rise` is the one that the verdict follows."""
    loss = common_loss(runs)
    asked = {
        "rise": ("rise of sharing with width", _trend([(run.width, run.rise, run.seed) for run in runs])),
        "rise_at_loss": (
            f"rise with width, where the loss first reaches {loss or 0:.3f} bits per byte",
            _trend([(run.width, run.rise_at_loss(loss), run.seed) for run in runs if loss is not None]),
        ),
        "loss": ("held-out loss with width", _trend([(run.width, run.bits_per_byte, run.seed) for run in runs])),
        "rise_by_loss": (
            "rise with held-out loss, among seeds of one width",
            _trend([(run.bits_per_byte, run.rise, run.size) for run in runs], centred=True),
        ),
    }
    return {name: (question, trend) for name, (question, trend) in asked.items() if trend is not None}


def _trend(found: Sequence[tuple[float | None, float | None, Hashable]], *, centred: bool = False) -> Trend | None:
    """The test of (x, y, block) of the runs that have both; None for fewer than two."""
    points = [point for point in found if point[0] is not None and point[1] is not None]
    if len(points) < 2:
        return None
    first, second, blocks = (list(column) for column in zip(*points, strict=True))
    if centred:  # differences between blocks are another question's
        first, second = _without_means(first, blocks), _without_means(second, blocks)
    return trend_test(first, second, blocks)


def verdict(trend: Trend, runs: Sequence[CapacityRun]) -> str:
    """One sentence on the compression hypothesis, and on what it rests."""
    sizes, seeds = len({run.size for run in runs}), len({run.seed for run in runs})
    basis = f"{sizes} sizes, {seeds} seed{'s' if seeds != 1 else ''}, {trend.num_runs} runs"
    figures = f"Spearman {trend.correlation:+.2f}, exact p {p_value(trend.p)}"
    if not trend.decided(ALPHA):
        return (
            f"Too few runs to tell ({basis}): the most extreme outcome would have had p {trend.smallest_p:.2g}. "
            f"Seen: {figures}. Add seeds."
        )
    if trend.p > ALPHA:
        slope = detectable_slope(runs)
        seen = (
            "with one seed a size it is unknown which slope could have been"
            if slope is None
            else f"a slope of {slope:.4f} or more per doubling of the width would have been ({POWER:.0%} power)"
        )
        return f"No trend of sharing with capacity could be seen ({basis}; {figures}); {seen}."
    if trend.direction < 0:
        return (
            f"Sharing rises more in smaller models ({basis}; {figures}), as the compression hypothesis predicts. "
            "Read it beside the same test at equal loss."
        )
    return f"Sharing rises more in larger models ({basis}; {figures}), against the compression hypothesis."


def detectable_slope(runs: Sequence[CapacityRun]) -> float | None:
    """The rise per doubling of the width that a straight line would have shown with 80 % power, two-sided at 5 %.

    The error is the spread among seeds of one width, pooled over widths; None with one seed a width.
    """
    points = [(float(np.log2(run.width)), run.rise, run.width) for run in runs if run.rise is not None]
    widths = sorted({width for _, _, width in points})
    rest = [rise - float(np.mean([r for _, r, w in points if w == width])) for _, rise, width in points]
    freedom = len(points) - len(widths)
    spread = float(np.var([x for x, _, _ in points])) * len(points)
    if freedom < 1 or not spread:
        return None
    error = (sum(value**2 for value in rest) / freedom / spread) ** 0.5
    return smallest_visible(float(t.ppf(0.975, freedom)) * error, freedom)


def _without_means(values: Sequence[float], blocks: Sequence[Hashable]) -> list[float]:
    """Values minus the mean of their block; differences that are only rounding count as none."""
    means = {name: float(np.mean([v for v, b in zip(values, blocks, strict=True) if b == name])) for name in blocks}
    return [round(value - means[name], 12) for value, name in zip(values, blocks, strict=True)]


def _size_table(runs: Sequence[CapacityRun]) -> Table:
    columns: dict[str, Callable[[CapacityRun], float | None]] = {
        "bits per byte": lambda run: run.bits_per_byte,
        "random networks": lambda run: run.change.first if run.change else None,
        "last": lambda run: run.change.last if run.change else None,
        "of the ceiling": lambda run: run.overall("ConceptOverlap", "normalized"),
    }
    found = {name: [column(run) for run in runs] for name, column in columns.items()}
    shown = {name: column for name, column in columns.items() if any(value is not None for value in found[name])}
    rows = []
    for size, members in by_size(runs):
        first = members[0]
        sizes = first.record.parameters
        rises = [run.rise for run in members if run.rise is not None]
        rows.append(
            (
                size,
                str(first.width),
                str(len(members)),
                _with_interval(rises),
                "" if first.num_units is None else f"{first.num_units:,}",
                "" if sizes is None else f"{sizes[0]:,} ({sizes[1]:,})",
                "" if first.tokens is None else f"{first.tokens:,}",
                "" if first.chance is None else f"{first.chance:.4f}",
                *(_mean([column(run) for run in members]) for column in shown.values()),
            )
        )
    return Table(
        title="By size",
        header=(
            # What the page is about stands first: a narrow window scrolls to the rest.
            "size", "width", "seeds", "rise [95 % over seeds]", "units N", "parameters (without embeddings)", "tokens",
            "chance K/N", *shown,
        ),
        rows=tuple(rows),
        note="Means over seeds at the last snapshot.",
    )  # fmt: skip


def _trend_table(trends: dict[str, tuple[str, Trend]]) -> Table:
    rows = tuple(
        (question, str(trend.num_runs), f"{trend.correlation:+.3f}", p_value(trend.p), p_value(trend.smallest_p))
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
        own = (run.record.name, str(run.width), str(run.seed), str(run.last_step), number(run.bits_per_byte))
        rows.append((*own, *((*run.change.cells, run.change.verdict) if run.change else [""] * 4)))
    return Table(
        title=f"Concept neurons across languages in every run ({runs[0].metric})",
        header=("run", "width", "seed", "step", "bits per byte", "random networks", "last",
                "difference [95 % over concepts]", ""),
        rows=tuple(rows),
    )  # fmt: skip


def _with_interval(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = mean_interval(np.array(values))
    said = with_interval(float(np.mean(values)), low, high, "+.4f")
    return said if len(values) > 1 else f"{said} (one seed)"


def _mean(values: Sequence[float | None]) -> str:
    kept = [value for value in values if value is not None]
    return number(float(np.mean(kept))) if kept else ""
