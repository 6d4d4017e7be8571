"""One self-contained HTML file that shows a run, or several beside each other: figures, tables, provenance.

The page needs no network: the plotting script is inside it once and every figure is data. It draws whatever rows there
are: measures that `CHAPTERS` names get a chapter with the questions of the field, every other one a chapter from the
shape of its rows (overall, per layer, per language, per pair), each beside its chance level and interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from analysis.report.chapters import (
    alignment,
    any_measure,
    causal_transfer,
    concepts_across,
    heldout,
    language_probe,
    minimal_pairs,
    overlap,
    steering,
    training,
)
from analysis.report.chapters.methods import methods
from analysis.report.closing import closing_tables
from analysis.report.comparison.runs import add_comparison, told_apart
from analysis.report.comparison.steps import add_steps
from analysis.report.page import Page
from analysis.report.run import RunRecord, analyses_of_class, read_run
from analysis.results import way_of

Chapter = Callable[[Page, RunRecord, str], None]
CHAPTERS: Mapping[str, Chapter] = {
    "LanguageProbe": language_probe.add_chapter,
    "ConceptOverlap": overlap.add_chapter,
    "Trajectories": concepts_across.add_trajectories,
    "ConceptDirections": concepts_across.add_directions,
    "CausalTransfer": causal_transfer.add_chapter,
    "MinimalPairs": minimal_pairs.add_chapter,
    "Steering": steering.add_chapter,
}
"""Chapters of their own by class of the analysis, in the order of the page."""

VERDICTS: Mapping[str, Callable[[RunRecord, str], list[str]]] = {
    "HeldOutLoss": heldout.verdicts,
    "LanguageProbe": language_probe.verdicts,
    "ConceptOverlap": overlap.verdicts,
    "Trajectories": concepts_across.trajectory_verdicts,
    "ConceptDirections": concepts_across.direction_verdicts,
    "CausalTransfer": causal_transfer.verdicts,
    "Alignment": alignment.verdicts,
    "MinimalPairs": minimal_pairs.verdicts,
    "Steering": steering.verdicts,
}
"""What the first screen says, by class of the analysis."""


def write_report(
    runs: Sequence[str | Path], out: str | Path | None = None, steps: tuple[int, int] | None = None
) -> Path:
    """Write the report of one run, of two steps of it, or the comparison of several runs; returns its path.

    `out` defaults to a file in the (first) run's folder: `report.html`, for two steps `steps_<first>_<second>.html`,
    for several runs `comparison.html`.

    Raises:
        FileNotFoundError: a run folder does not exist or holds no results.
        ValueError: no run was given, one twice, or two steps of several runs or without results.
    """
    if not runs:
        raise ValueError("report: name at least one run folder")
    if steps is not None and len(runs) > 1:
        raise ValueError("report: --steps compares two steps of one run; name one")
    records = told_apart([read_run(run) for run in runs])
    name = "report.html" if len(records) == 1 else "comparison.html"
    if steps is not None:
        name = f"steps_{steps[0]}_{steps[1]}.html"
    path = Path(out) if out is not None else records[0].folder / name
    page = Page(" · ".join(record.name for record in records), records[0].tokens if len(records) == 1 else {})
    if steps is not None:
        add_steps(page, records[0], *steps)
    elif len(records) > 1:
        add_comparison(page, records, [*CHAPTERS])
    else:
        add_run(page, records[0])
    page.write(path)
    return path


def add_run(page: Page, record: RunRecord) -> None:
    """All chapters of one run."""
    page.chapter("In short")
    matters = [overlap.headline(record, name) for name in analyses_of_class(record, "ConceptOverlap")[:1]]
    page.verdicts(verdicts(record), *matters)
    if record.frame.empty:
        page.paragraph("No analysis was measured yet: `python -m analysis run` does it for the snapshots of a run.")
    with page.fold("Methods"):
        for paragraph in methods(record):
            page.paragraph(paragraph)
    page.grid(closing_tables(record))
    if not record.history.empty:
        training.add_chapter(page, record)
    done = set()
    for class_of, add_chapter in CHAPTERS.items():
        for name in analyses_of_class(record, class_of):
            add_chapter(page, record, name)
            done.add(name)
    for name in sorted({*record.frame["analysis"]} - done):
        any_measure.add_chapter(page, record, name)
    _provenance(page, record)


def verdicts(record: RunRecord) -> list[str]:
    """One sentence a question, each with its interval; then what no sentence may be asked of."""
    said = [
        sentence
        for class_of, sentences in VERDICTS.items()
        for name in analyses_of_class(record, class_of)
        for sentence in sentences(record, name)
    ]
    said += record.warnings
    if record.unusable:
        steps = ", ".join(map(str, record.unusable))
        said.append(f"Left out of all of this: step {steps}, a copy of another checkpoint or broken (see Provenance).")
    if record.registered:
        said.append(record.registered)
    if said:
        said.append("One training run: a claim about training needs several seeds.")
    return said


def _provenance(page: Page, record: RunRecord) -> None:
    page.chapter("Provenance", "What exactly was measured, with which settings, at which cost.")
    if record.identity:
        page.data("Identity of the weights", record.identity)
    settings: dict[str, dict[str, dict]] = {}
    for step, analysis, stamp in record.stamps:
        fingerprint, dtype = way_of(stamp)
        way = {"dtype": dtype, "settings": stamp["settings"], "steps": []}
        settings.setdefault(analysis, {}).setdefault(f"{fingerprint} {dtype}", way)["steps"].append(step)
    page.data("Settings of the analyses", settings)
    if record.config:
        page.data("Configuration of the run", record.config)
