"""Concept neurons that languages share: over training, by layer, by pair of languages."""

from __future__ import annotations

import plotly.graph_objects as go

from analysis.report import figures as draw
from analysis.report.changes import DECISIVE, PAPER, STRATA, changes_by_stratum, find_change
from analysis.report.chapters.any_measure import add_figures, captioned, open_chapter, significance
from analysis.report.chapters.units import add_units
from analysis.report.explanations import in_words, unit_of
from analysis.report.figures import select
from analysis.report.page import Card, Page
from analysis.report.pair_figures import change_of_pairs, dendrogram, pair_matrix
from analysis.report.run import RunRecord
from analysis.report.style import PALETTE, add_level


def verdicts(record: RunRecord, name: str) -> list[str]:
    """Do languages share concept neurons more than in random networks? Over all pairs, and in each stratum."""
    found = changes_by_stratum(record, name, DECISIVE)
    if found:
        change = found[0]
        said = (
            f"Sharing ({name}): what a unit's average precision (AP) for a concept in one language says of its AP in "
            "another, on other sentences (rank correlation, minus that of different concepts): "
            f"{change.last:.4f} at step {change.step}, "
            f"{change.first:.4f} in {change.reference}; difference {change.interval} over {change.num_concepts} "
            f"concepts, p {change.contrast.p:.2g}: {change.verdict}."
        )
        strata = [
            f"{STRATA[part.condition]} {part.interval}, {part.in_a_word}"
            for part in found
            if part.condition is not None
        ]
        return [said, f"Sharing by pairs of languages ({name}): " + "; ".join(strata) + "."] if strata else [said]
    paper = find_change(record, name, PAPER)
    if paper is None:
        return [
            f"Sharing ({name}): neither random networks nor step 0 were measured on the same sentences, or all "
            "concepts depend on each other, so a level above chance cannot be told from surface overlap (shared "
            "subwords, names, lengths)."
        ]
    return [
        f"Sharing ({name}): no verdict: results older than the held-out statistic that decides lack it (measure them "
        "again), and so do concepts that all depend on each other. Shared experts on the same sentences, which "
        f"likeness of translations alone raises: {paper.last:.4f} at step {paper.step}, {paper.first:.4f} in "
        f"{paper.reference}; difference {paper.interval} over {paper.num_concepts} concepts: {paper.verdict}."
    ]


def headline(record: RunRecord, name: str, *, ceiling: bool = False) -> Card | None:
    """The one figure that matters: the statistic that decides over training, against random networks.

    With its `ceiling`, the same of a language with itself, it is seen from further away.
    """
    for metric in (DECISIVE, PAPER):
        rows = record.usable(select(record.frame, name, metric))
        if not rows.empty:
            band = select(record.null_band(name), name, metric)
            title = f"Sharing of concept neurons ({in_words(metric).lower()})"
            unit = unit_of("ConceptOverlap", metric)
            figure = draw.against_random(rows, band, title, unit=unit)
            most = record.usable(select(record.frame, name, "rank_ceiling"))
            if ceiling and metric == DECISIVE and not most.empty:
                add_level(figure, most["step"].tolist(), most["value"], "within a language", PALETTE[2], "longdash")
            return captioned(record, name, metric, figure)
    return None


def add_chapter(page: Page, record: RunRecord, name: str) -> None:
    open_chapter(
        page,
        record,
        name,
        "Concept neurons shared between languages",
        "The top K units by average precision for a concept in one language, and the share of them that are also top "
        "units for the same concept in another. Dashed: expected by chance. Dotted: the untrained network on the same "
        "sentences, which shares units through surface features.",
    )
    frame = record.frame
    shared = select(frame, name, "shared")
    items: list[Card | None] = [headline(record, name, ceiling=True)]

    def show(figure: go.Figure | None, metric: str, more: str = "") -> None:
        items.append(None if figure is None else captioned(record, name, metric, figure, more))

    if not shared.empty and not select(frame, name, DECISIVE).empty:
        title, unit = "Shared share of the top K, mean over pairs and concepts", unit_of("ConceptOverlap", "shared")
        show(draw.over_steps(shared, title, unit=unit), "shared")
    for metric, title in (("shared_units", "Where the shared neurons are"), ("expert_units", "Where the experts are")):
        unit = unit_of("ConceptOverlap", metric)
        layers = select(frame, name, metric, by=("layer",))
        if not layers.empty:
            band = select(record.null_band(name), name, metric, by=("layer",))
            show(draw.profile(layers, band, title, unit=unit), metric)
            if layers["step"].nunique() > 1:
                show(draw.layers_by_steps(layers, f"{title}, layer by training step", unit=unit), metric)
    for metric in (DECISIVE, PAPER):
        concepts = select(frame, name, metric, by=("concept",))
        if not concepts.empty and concepts["step"].nunique() > 1:
            title, unit = f"{in_words(metric)} of a concept over training", unit_of("ConceptOverlap", metric)
            show(draw.picked(concepts, "concept", title, unit=unit), metric)
            break
    for metric in (DECISIVE, PAPER):
        pairs = select(frame, name, metric, by=("language", "other_language"))
        if pairs.empty:
            continue
        usable = record.usable(pairs)
        step = int((pairs if usable.empty else usable)["step"].max())
        last, unit = pairs[pairs["step"] == step], unit_of("ConceptOverlap", metric)
        # Against chance nearly all pairs differ in the study's number, of translations alone; it has no such line.
        tests = significance(frame[(frame["analysis"] == name) & (frame["metric"] == DECISIVE)])
        tests = tests if metric == DECISIVE else ""
        show(pair_matrix(last, f"{in_words(metric)} by language pair, step {step}", unit=unit), metric, tests)
        if step > 0 and (pairs["step"] == 0).any():
            title = f"{in_words(metric)}, change against the untrained network, step {step}"
            show(pair_matrix(change_of_pairs(pairs, 0, step), title, unit=unit, diverging=True), metric)
        if metric == PAPER:
            show(dendrogram(last, f"Languages by shared concept neurons, step {step}"), metric)
    page.grid(items)
    add_units(page, record, name)
    page.heading("Nulls, ceilings and further measures")
    add_figures(page, record, name, leave_out=(DECISIVE, PAPER, "shared_units", "expert_units"))
