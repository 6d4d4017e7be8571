"""The figures of docs/first_light.md, in the form of the paper: curves over training with bands, profiles by depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from analysis.onsets import band_edges
from analysis.statistics import mean_contrast, two_way_interval
from studies.first_light.draw import GREY, Line, Panel, Point, write_figure
from studies.first_light.hypotheses import capacity_comparison, capacity_values
from studies.first_light.study import NATURAL, Study


def draw_figures(study: Study) -> Iterator[tuple[str, str, str]]:
    """Name, caption and SVG of every figure for which there are numbers."""
    yield (
        "sharing",
        "Agreement of the rankings of all units for a concept between two languages (R, disjoint halves of the "
        "sentences), over training. Thick: mean over seeds with its interval over seeds and concepts; thin: each seed; "
        "grey: where one more untrained network would lie.",
        write_figure([_sharing(study, condition, label) for condition, label in study.strata.items()], columns=2),
    )
    natural = {None: "all natural pairs"} | {name: label for name, label in study.strata.items() if name in NATURAL}
    yield (
        "experts",
        "Experts that two languages share on the same sentences, 3 % of the units (the paper's measure), beside "
        "shuffled labels, other concepts and chance; intervals over seeds.",
        write_figure(
            [_experts(study, condition, label) for condition, label in natural.items()],
            2,
        ),
    )
    if len(study.dip_steps) > 1:
        yield (
            "identity",
            "The language probe on shared tokens along depth, at several steps, and D over training (thin: each seed).",
            write_figure([_depth(study, "accuracy_shared", "accuracy", -1), _dip(study)]),
        )
    yield (
        "depth",
        "Where shared experts lie: share of K in each block, at several steps, all pairs and the clone's too; dashed: "
        "random sets with the same number in each site, last step.",
        write_figure([_depth(study, "shared_units", "shared units / K", 0)]),
    )
    if len(table := capacity_values(study)):
        yield (
            "capacity",
            "Rise of R (no common script) over the split-half ceiling against width; each line a seed.",
            write_figure(list(_capacity(table))),
        )


def _octave(step: int) -> float:
    """Place on the axis: step 0 an octave before the first snapshot."""
    return float(np.log2(step or 32))


def _axis(steps: Sequence[int]) -> list[tuple[float, str]]:
    shown = [step for step in steps if step in (0, 64, 256, 1024, 4096) or step == steps[-1]]
    names = {step: f"{step / 1024:g}k" if step >= 1024 else str(step) for step in shown}
    return [(_octave(step), names[step]) for step in shown]


def _curve(table: pd.DataFrame, label: str, **style: object) -> Line:
    """Mean over seeds with Student's interval."""
    points = [(_octave(int(step)), float(row.mean())) for step, row in table.iterrows()]
    several = table.shape[1] > 1
    found = [mean_contrast(row.to_numpy()) for _, row in table.iterrows()] if several else []
    return Line(label, points, [(one.low, one.high) for one in found], **style)  # type: ignore[arg-type]


def _sharing(study: Study, condition: str, label: str) -> Panel:
    table = study.means("rank_transfer", condition).loc[study.steps]
    lines = [
        Line("", [(_octave(step), float(table.loc[step, seed])) for step in study.steps], colour=GREY, thin=True)
        for seed in table
    ]
    band: list[Point] = []
    for step in study.steps:
        values = study.by_concept("rank_transfer", condition, step)
        contrast = two_way_interval(values.to_numpy(), study.clusters_of(values.columns))
        band.append((contrast.low, contrast.high))
    points = [(_octave(step), float(table.loc[step].mean())) for step in study.steps]
    null = band_edges(table.loc[0].tolist())
    return Panel(
        label, "training step", "R", [*lines, Line("mean of the seeds", points, band)], _axis(study.steps), null
    )


def _experts(study: Study, condition: str | None, label: str) -> Panel:
    named = {"shared": "shared", "shared_shuffled": "shuffled labels", "shared_mismatched": "other concepts"}
    lines = []
    for metric, name in named.items():
        table = study.means(metric, condition)
        if len(table := table.loc[table.index.intersection(study.steps)]):
            lines.append(_curve(table, name))
    chance = study.chance("shared", study.steps[-1])
    if chance is not None:
        lines.append(Line("chance", [(_octave(step), chance) for step in study.steps], colour=GREY, dashed=True))
    return Panel(label, "training step", "share of K", lines, _axis(study.steps))


def _depth(study: Study, metric: str, y_label: str, first: int) -> Panel:
    """Along the blocks, a line for each of several steps."""
    rows = study.main[(study.main["metric"] == metric) & study.main["layer"].notna()]
    layers = sorted(set(rows["layer"].astype(int)) - set(range(-1, first)))
    there = rows.groupby("step")["run_seed"].nunique()
    steps = [step for step in study.steps if there.get(step) == rows["run_seed"].nunique()]
    shown = [step for step in (0, 64, 512, 4096) if step in steps[:-1]] + steps[-1:]
    lines = []
    for step in shown:
        own = rows[rows["step"] == step]
        means = own.groupby("layer")["value"].mean()
        lines.append(Line(f"step {step:,}", [(float(layer), float(means[layer])) for layer in layers]))
        chances = own.groupby("layer")["chance"].mean()
    lines.append(Line("chance", [(float(layer), float(chances[layer])) for layer in layers], colour=GREY, dashed=True))
    ticks = [(float(layer), "emb" if layer < 0 else str(layer)) for layer in layers]
    return Panel(y_label, "block", y_label, lines, ticks)


def _dip(study: Study) -> Panel:
    steps, dips, _ = study.dip_arrays
    means = dips.mean(-1)
    lines = [
        Line(
            "", [(_octave(step), float(value)) for step, value in zip(steps, row, strict=True)], colour=GREY, thin=True
        )
        for row in means
    ]
    found = [two_way_interval(dips[:, place]) for place in range(len(steps))]
    points = [(_octave(step), one.difference) for step, one in zip(steps, found, strict=True)]
    lines.append(Line("mean of the seeds", points, [(one.low, one.high) for one in found]))
    return Panel("middle minus the better end", "training step", "D", lines, _axis(steps))


def _capacity(table: pd.DataFrame) -> Iterator[Panel]:
    widths, seeds, *values = capacity_comparison(table)
    ticks = [(float(np.log2(width)), f"d{width}") for width in sorted(set(widths))]
    for title, own in zip(("at equal tokens", "at equal loss"), values, strict=True):
        points: dict[int, list[Point]] = {}
        for width, seed, value in sorted(zip(widths, seeds, own, strict=True)):
            points.setdefault(seed, []).append((float(np.log2(width)), value))
        lines = [Line(f"seed {seed}", places) for seed, places in sorted(points.items())]
        yield Panel(title, "width", "rise / ceiling", lines, ticks)
