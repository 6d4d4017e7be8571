"""What stands beside the curves of a W&B page, drawn from the result table: panels, strips, heatmaps and tables.

    panels/overlap/shared           a figure: value, 95 % interval, chance, random networks, step 0
    layers/overlap/expert_units     a histogram with one bin a layer, which W&B draws over time as a heat strip
    heatmaps/language_probe/...     an image: layers upwards, snapshots to the right
    pairs/alignment/mutual_knn      a figure: language x language
    tables/overlap_experts          the experts of every concept
    tables/samples                  what the model writes, in every language

Headlines have panels, a heatmap and pairs; every measure by layer has a strip unless it falls below 0, which a
histogram cannot show. All of a step is drawn from results up to that step, so a page that is made again is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from plotly.colors import get_colorscale, sample_colorscale, unlabel_rgb

from analysis.base import class_name
from analysis.report.chapters.steering_figures import live_steering_figures
from analysis.report.explanations import unit_of
from analysis.report.figures import against_random, select
from analysis.report.headlines import headlines_of, layer_label
from analysis.report.pair_figures import is_directed, pair_matrix
from analysis.report.style import SEQUENTIAL
from analysis.results import ResultTable

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from PIL.Image import Image

COST = "analysis_cost/seconds/"
"""Prefix of a key that every analysis has in a row of the record."""
EXPERTS_SHOWN = 5
"""Units of a concept and language in the table of experts."""
WIDTH, CELL, LABELS = 360, 18, 40
"""Pixels: of all cells of a heatmap side by side, of the height of one, and of the margin for labels."""


def media_of(results: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Figures, strips, images and tables of a row of analyses, as W&B takes them; none of a training row."""
    names = [key.removeprefix(COST) for key in row["values"] if key.startswith(COST)]
    if not names:
        return {}
    import wandb

    step, table = row["step"], ResultTable(results)
    frame = table.frame(names)
    frame = frame[frame["step"] <= step]
    media: dict[str, Any] = {"progress/snapshot": max(0, frame["step"].nunique() - 1)}
    for name in names:
        rows, stamp = frame[frame["analysis"] == name], table.stamp(step, name)
        class_of = class_name(stamp["settings"]) if stamp is not None else ""
        headlines = headlines_of(class_of)
        for key, figure in _figures(rows, name, class_of, headlines, table.null_band(name)):
            media[key] = wandb.Plotly(figure)
        for metric, values, edges in strips(rows[rows["step"] == step], name):
            media[f"layers/{name}/{metric}"] = wandb.Histogram(np_histogram=(np.array(values), np.array(edges)))
        if (drawn := heatmap(rows, name, headlines)) is not None:
            media[f"heatmaps/{name}/{drawn[0]}"] = wandb.Image(drawn[1])
    for key, figure in live_steering_figures(table, names, step).items():
        media[key] = wandb.Plotly(figure)
    for key, shown in tables(table, step, names):
        media[key] = wandb.Table(dataframe=shown)
    return media


def is_of_analyses(row: Mapping[str, Any]) -> bool:
    """Whether a row of the record is one of analyses, whatever its kind is called."""
    return any(key.startswith(COST) for key in row["values"])


def _figures(
    rows: pd.DataFrame, analysis: str, class_of: str, headlines: Sequence[str], band: pd.DataFrame
) -> Iterator[tuple[str, go.Figure]]:
    for metric in headlines:
        unit = unit_of(class_of, metric)
        overall = select(rows, analysis, metric)
        if len(overall):
            null = select(band, analysis, metric)
            yield f"panels/{analysis}/{metric}", against_random(overall, null, f"{analysis}: {metric}", unit=unit)
        pairs = select(rows, analysis, metric, by=("language", "other_language"))
        if len(pairs):
            newest = pairs[pairs["step"] == pairs["step"].max()]
            title = f"{analysis}: {metric}, step {newest['step'].iloc[0]}"
            yield f"pairs/{analysis}/{metric}", pair_matrix(newest, title, unit=unit, directed=is_directed(newest))


def strips(rows: pd.DataFrame, analysis: str) -> Iterator[tuple[str, list[float], list[int]]]:
    """(metric, value of every layer, edges of the bins) of every measure by layer at one step; -1: the embeddings."""
    for metric in rows["metric"].drop_duplicates():
        layers = select(rows, analysis, metric, by=("layer",)).sort_values("layer")
        if len(layers) > 1 and layers["value"].min() >= 0:
            numbers = layers["layer"].astype(int).tolist()
            yield metric, layers["value"].tolist(), [*numbers, numbers[-1] + 1]


def heatmap(rows: pd.DataFrame, analysis: str, headlines: Sequence[str]) -> tuple[str, Image] | None:
    """(metric, image) of the first headline with values by layer, or None."""
    for metric in headlines:
        layers = select(rows, analysis, metric, by=("layer",))
        if len(layers):
            return metric, layer_image(layers.pivot_table(index="layer", columns="step", values="value"))
    return None


def layer_image(table: pd.DataFrame) -> Image:
    """An image of (layers, steps): layer -1 or 0 at the bottom, labels of the first and the last of each."""
    from PIL import Image, ImageDraw

    table = table.sort_index(ascending=False).sort_index(axis=1)
    values = table.to_numpy(dtype=float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    places = np.nan_to_num((values - low) / (high - low or 1.0))
    colours = sample_colorscale(get_colorscale(SEQUENTIAL), places.ravel().tolist())
    pixels = np.array([unlabel_rgb(colour) for colour in colours], dtype=np.uint8).reshape(*values.shape, 3)
    pixels[np.isnan(values)] = 255
    cells = np.kron(pixels, np.ones((CELL, max(4, WIDTH // values.shape[1]), 1), dtype=np.uint8))
    image = Image.new("RGB", (cells.shape[1] + LABELS, cells.shape[0] + 2 * CELL), "white")
    image.paste(Image.fromarray(cells), (LABELS, 0))
    draw = ImageDraw.Draw(image)
    bottom = cells.shape[0]
    draw.text((2, 3), layer_label(int(table.index[0])), fill="black")
    draw.text((2, bottom - CELL + 3), layer_label(int(table.index[-1])), fill="black")
    draw.text((LABELS, bottom + 1), f"step {table.columns[0]} to {table.columns[-1]}", fill="black")
    draw.text((LABELS, bottom + CELL), f"dark {low:.3g}, light {high:.3g}", fill="black")
    return image


def tables(table: ResultTable, step: int, names: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Experts by concept and sampled texts, of the analyses that store them."""
    for name in names:
        if table.path(step, name, "experts").is_file():
            experts = table.attachment(step, name, "experts").to_pandas()
            columns = ["concept", "language", "rank", "layer", "kind", "index", "ap", "auroc"]
            yield f"tables/{name}_experts", experts.loc[experts["rank"] < EXPERTS_SHOWN, columns]
        if table.path(step, name, "samples").is_file():
            yield "tables/samples", table.attachment(step, name, "samples").to_pandas()
