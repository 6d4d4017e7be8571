"""Concept neurons that languages share: over training, by layer, by pair of languages."""

from __future__ import annotations

from analysis.report import figures as draw
from analysis.report.changes import DECISIVE, PAPER, STRATA, Change, changes_by_stratum, find_change
from analysis.report.chapters.any_measure import add_figures
from analysis.report.figures import select
from analysis.report.page import Card, Page
from analysis.report.pair_figures import dendrogram, pair_matrix
from analysis.report.run import RunRecord


def verdicts(record: RunRecord, name: str) -> list[str]:
    """Do languages share concept neurons more than in random networks? Over all pairs, and in each stratum."""
    found = changes_by_stratum(record, name, DECISIVE)
    if found:
        change = found[0]
        said = (
            f"Sharing ({name}): what a unit's AP for a concept in one language says of its AP in another, on other "
            f"sentences (rank correlation, minus that of different concepts): {change.last:.4f} at step {change.step}, "
            f"{change.first:.4f} in {change.reference}; difference {change.interval} over {change.num_concepts} "
            f"concepts, p {change.contrast.p:.2g}: {change.verdict}."
        )
        strata = [
            f"{STRATA[part.condition]} {part.interval}, {_in_a_word(part)}"
            for part in found
            if part.condition is not None
        ]
        return [said, "By pairs of languages: " + "; ".join(strata) + "."] if strata else [said]
    paper = find_change(record, name, PAPER)
    if paper is None:
        return [
            f"Sharing ({name}): neither random networks nor step 0 were measured on the same sentences, so a level "
            "above chance cannot be told from surface overlap (shared subwords, names, lengths)."
        ]
    return [
        f"Sharing ({name}): these results are older than the held-out statistic that decides; measure them again for a "
        f"verdict. Shared experts on the same sentences, which likeness of translations alone raises: {paper.last:.4f} "
        f"at step {paper.step}, {paper.first:.4f} in {paper.reference}; difference {paper.interval} over "
        f"{paper.num_concepts} concepts: {paper.verdict}."
    ]


def _in_a_word(change: Change) -> str:
    if change.contrast.low > 0:
        return "above"
    return "below" if change.contrast.high < 0 else f"not shown (visible from {change.detectable:.4f})"


def add_chapter(page: Page, record: RunRecord, name: str) -> None:
    page.chapter(
        "Concept neurons shared between languages",
        "The top K units by average precision for a concept in one language, and the share of them that are also top "
        "units for the same concept in another. Dashed: expected by chance. Dotted: the untrained network on the same "
        "sentences, which shares units through surface features.",
    )
    frame = record.frame
    shared = select(frame, name, "shared")
    layers = select(frame, name, "shared_units", by=("layer",))
    pairs = select(frame, name, "shared", by=("language", "other_language"))
    items: list[Card | None] = []
    if not shared.empty:
        items.append(
            draw.over_steps(shared, "Shared share of the top K, mean over pairs and concepts", unit="shared / K")
        )
    if not layers.empty:
        items.append(draw.profile(layers, "Where the shared neurons are", unit="shared units"))
    if not pairs.empty:
        steps = sorted(pairs["step"].unique())
        last = pairs[pairs["step"] == steps[-1]]
        items.append(pair_matrix(last, f"Shared / K by language pair, step {steps[-1]}"))
        if steps[0] == 0 and len(steps) > 1:
            first = pairs[pairs["step"] == 0].set_index(["language", "other_language"])["value"]
            difference = last.set_index(["language", "other_language"])
            difference = difference.assign(value=difference["value"] - first).reset_index().dropna(subset=["value"])
            title = f"Change against the untrained network, step {steps[-1]}"
            items.append(pair_matrix(difference, title, diverging=True))
        items.append(dendrogram(last, f"Languages by shared concept neurons, step {steps[-1]}"))
    page.grid(items)
    page.heading("Nulls, ceilings and further measures")
    add_figures(page, record, name, leave_out=("shared", "shared_units"))
