"""Several runs in one report: same axis (tokens seen), and only measures that mean the same at different sizes.

A raw overlap depends on how many units a model has (the expected overlap is K/N), a dimension on its width, so where
the runs differ in size only measures with a null of their own are drawn against each other; the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from analysis.report import figures as draw
from analysis.report.changes import DECISIVE, PAPER, find_change
from analysis.report.comparison.seeds import headlines_over_runs, only_seeds_differ, sharing_over_runs
from analysis.report.explanations import explain, heading_of, in_words, unit_of
from analysis.report.figures import select
from analysis.report.headlines import headlines_of
from analysis.report.page import Captioned, Card, Page
from analysis.report.run import RunRecord, differing
from analysis.report.tables import Table

NOTHING_IN_COMMON = (
    "nothing is said of all of them, since no measure has both step 0 and a later step that every run has "
    "(`python -m analysis run` measures step 0 of a run folder)."
)
SIZE_DEPENDENT = frozenset(
    {
        # of concept neurons: the expected overlap is K / N, the best of N units grows with N
        *("shared", "shared_shuffled", "shared_mismatched", "shared_surface", "shared_units", "expert_units"),
        *("heldout_shared", "ceiling", "ap_best", "ap_experts", "ap_heldout", "transfer", "transfer_gain"),
        "frozen_experts",
        # of geometry: bounded by width and by the number of tokens
        *("sharing", "intrinsic_dimension", "cka_debiased"),
        # of language neurons and codes: a share by layer, and a null that grows with the width
        *("language_units", "compression_mdl", "compression_mdl_control"),
    }
)
"""Metrics whose value under the null depends on the number of units, layers, directions or tokens."""


def depends_on_size(metric: str) -> bool:
    return metric in SIZE_DEPENDENT or metric.startswith("shared_by_")


def told_apart(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs, those of one name with their folder behind it: one run may be measured twice, in two folders.

    Raises:
        ValueError: a folder is given twice.
    """
    folders = [record.folder.resolve() for record in records]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ValueError(f"report: {folder} is named twice")
    names = [record.name for record in records]
    return [
        replace(record, name=f"{record.name} ({record.folder})") if names.count(record.name) > 1 else record
        for record in records
    ]


def add_comparison(page: Page, records: Sequence[RunRecord], order: Sequence[str] = ()) -> None:
    """Chapters for several runs, each of another name; analysis classes of `order` come first."""
    frame = pd.concat([record.frame for record in records], ignore_index=True)
    axis = "tokens" if frame.loc[frame["step"] > 0, "tokens"].notna().all() else "step"
    note = "" if axis == "tokens" else " Tokens seen are not known for all runs, so steps are the axis."
    if only_seeds_differ(records):
        sentences, tables = sharing_over_runs(records)
        headlines = headlines_over_runs(records)
        said = "what holds for all of them." if tables or headlines else NOTHING_IN_COMMON
        page.chapter("In short", f"One training with several seeds: {said}")
        page.verdicts(sentences)
        page.grid([*tables, headlines])
    page.chapter("Runs beside each other", "One line a run; dotted: its untrained network; dashed: chance." + note)
    page.grid([_what_differs(records), _changes(records)])
    for record in records:
        for sentence in record.warnings:
            page.paragraph(f"{record.name}: {sentence}")
    sizes_differ, said = compare_sizes(records)
    if said:
        page.paragraph(said)
    classes = {name: class_of for record in records for name, class_of in record.classes.items()}
    places = {class_of: place for place, class_of in enumerate(order)}
    for analysis in sorted(frame["analysis"].unique(), key=lambda name: (places.get(classes[name], len(places)), name)):
        _add_analysis(page, records, frame, analysis, axis, sizes_differ)


def compare_sizes(records: Sequence[RunRecord]) -> tuple[bool, str]:
    """Whether the runs differ in size, and a sentence on it: empty where all are known to be of one size."""
    for what, in_full in (("parameters", "parameters without embeddings"), ("units", "units")):
        known = {record.name: record.sizes[what] for record in records if what in record.sizes}
        if len(set(known.values())) > 1:
            sizes = ", ".join(f"{name}: {size:,}" for name, size in known.items())
            return True, (
                f"The runs differ in the number of {in_full} ({sizes}), so measures whose null depends on the size are "
                "left out."
            )
    common = set.intersection(*(set(record.sizes) for record in records))
    return False, "" if common else (
        "Not all results say the size of their model: if the runs differ in it, levels of overlaps, of best units and "
        "of geometry do not compare. One analysis measured anew tells it."
    )


def _add_analysis(
    page: Page, records: Sequence[RunRecord], frame: pd.DataFrame, analysis: str, axis: str, sizes_differ: bool
) -> None:
    """The headlines of an analysis in view, its other metrics behind a fold; nothing where no trained step has it."""
    rows = frame[frame["analysis"] == analysis]
    class_of = next(record.classes[analysis] for record in records if analysis in record.classes)
    items: dict[str, Card] = {}
    for metric in rows.loc[rows["step"] > 0, "metric"].drop_duplicates():
        if sizes_differ and depends_on_size(metric):
            continue
        overall = {record.name: select(record.frame, analysis, metric) for record in records}
        title = in_words(metric)
        if all(part.empty for part in overall.values()):
            overall = {record.name: _layer_mean(record, analysis, metric) for record in records}
            title += ", mean of layers"
        overall = {name: part for name, part in overall.items() if not part.empty}
        if overall:
            figure = draw.compare_runs(overall, title, unit=unit_of(class_of, metric), axis=axis)
            items[metric] = Captioned(figure, explain(class_of, metric))
    differ = differing((record, analysis) for record in records if analysis in record.settings)
    if not items and not differ:
        return
    page.chapter(heading_of(class_of) or in_words(analysis))
    if differ:
        page.paragraph(f"Measured with different settings: {', '.join(differ)}; see the Provenance of each run's page.")
    first = [items.pop(metric) for metric in headlines_of(class_of) if metric in items]
    if not first:
        first, items = list(items.values()), {}
    page.grid(first)
    with page.fold("Further measures"):
        page.grid(items.values())


def _layer_mean(record: RunRecord, analysis: str, metric: str) -> pd.DataFrame:
    rows = select(record.frame, analysis, metric, by=("layer",))
    if rows.empty:
        return rows
    keys = ["run", "step", "tokens", "analysis", "metric"]
    means = rows.groupby(keys, as_index=False, dropna=False).agg({"value": "mean", "chance": "mean"})
    return means.assign(low=float("nan"), high=float("nan"))


def _what_differs(records: Sequence[RunRecord]) -> Table:
    rows = []
    for record in records:
        steps = record.steps
        tokens = record.frame["tokens"].dropna()
        seen = f"{int(tokens.max()):,}" if len(tokens) else "unknown"
        rows.append((record.name, str(len(steps)), _span(steps), seen))
    return Table(title="Runs", header=("run", "snapshots", "steps", "tokens seen"), rows=tuple(rows))


def _span(steps: Sequence[int]) -> str:
    return f"{steps[0]} - {steps[-1]}" if len(steps) > 1 else "".join(map(str, steps))


def _changes(records: Sequence[RunRecord]) -> Table | None:
    rows = []
    for record in records:
        for analysis in sorted(record.frame["analysis"].unique()):
            change = find_change(record, analysis, DECISIVE) or find_change(record, analysis, PAPER)
            if change is not None:
                rows.append((record.name, in_words(change.metric), change.reference, *change.cells, change.in_a_word))
    if not rows:
        return None
    return Table(
        title="Concept neurons across languages, last usable snapshot, paired over concepts",
        header=("run", "measure", "against", "there", "last", "difference [95 %]", ""),
        rows=tuple(rows),
    )
