"""Concept neurons that languages share: over training, by layer, by pair of languages."""

from __future__ import annotations

from analysis.report import figures as draw
from analysis.report.chapters.any_measure import add_figures
from analysis.report.figures import select
from analysis.report.page import Card, Page
from analysis.report.pair_figures import dendrogram, pair_matrix
from analysis.report.run import RunRecord


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
