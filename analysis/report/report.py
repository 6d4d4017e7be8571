"""One self-contained HTML file that shows a run, or several beside each other: figures, tables, provenance.

The page needs no network: the plotting script is inside it once and every figure is data. It draws whatever rows there
are: measures that `CHAPTERS` names get a chapter with the questions of the field, every other one a chapter from the
shape of its rows (overall, per layer, per language, per pair), each beside its chance level and interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from analysis.report.chapters import any_measure, language_probe, overlap, steering, training
from analysis.report.comparison import add_comparison
from analysis.report.page import Page
from analysis.report.run import RunRecord, read_run
from analysis.report.summary import analyses_of_class, change_since_start, closing_tables

Chapter = Callable[[Page, RunRecord, str], None]
CHAPTERS: Mapping[str, Chapter] = {
    "LanguageProbe": language_probe.add_chapter,
    "ConceptOverlap": overlap.add_chapter,
    "Steering": steering.add_chapter,
}
"""Chapters of their own by class of the analysis, in the order of the page."""


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the report of one run, or the comparison of several; returns its path.

    `out` defaults to `report.html` in the (first) run's folder.

    Raises:
        FileNotFoundError: a run folder does not exist or holds no results.
        ValueError: no run was given.
    """
    if not runs:
        raise ValueError("report: name at least one run folder")
    records = [read_run(run) for run in runs]
    path = Path(out) if out is not None else records[0].folder / "report.html"
    page = Page(" · ".join(record.name for record in records), records[0].tokens if len(records) == 1 else {})
    if len(records) > 1:
        add_comparison(page, records)
    else:
        add_run(page, records[0])
    page.write(path)
    return path


def add_run(page: Page, record: RunRecord) -> None:
    """All chapters of one run."""
    page.chapter("In short")
    _verdicts(page, record)
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


def _verdicts(page: Page, record: RunRecord) -> None:
    for name in analyses_of_class(record, "ConceptOverlap"):
        change = change_since_start(record, name, "shared")
        if change is None:
            page.verdict(
                f"{name}: no step-0 network was measured on the same sentences, so a level above chance cannot be told "
                "from surface overlap (shared subwords, names, lengths)."
            )
            continue
        page.verdict(
            f"Concept neurons shared between languages ({name}): {100 * change.last:.2f} % of the top K at step "
            f"{change.step}, {100 * change.first:.2f} % in the untrained network on the same sentences; difference "
            f"{100 * change.difference:+.2f} points, 95 % interval [{100 * change.low:+.2f}, {100 * change.high:+.2f}] "
            f"over {change.num_concepts} concepts: {change.verdict}. One training run; a claim about training needs "
            "several seeds."
        )


def _provenance(page: Page, record: RunRecord) -> None:
    page.chapter("Provenance", "What exactly was measured, with which settings, at which cost.")
    if record.identity:
        page.data("Identity of the weights", record.identity)
    settings: dict[str, dict] = {}
    for step, analysis, stamp in record.stamps():
        entry = settings.setdefault(analysis, {"settings": stamp["settings"], "fingerprints": {}})
        entry["fingerprints"].setdefault(stamp["fingerprint"], []).append(step)
    page.data("Settings of the analyses", settings)
    if record.config:
        page.data("Configuration of the run", record.config)
