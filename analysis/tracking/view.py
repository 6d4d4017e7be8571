"""A saved view of a W&B project: ten panels that tell what a run does, instead of hundreds in alphabetical order.

The view is made of the keys that a run has; it belongs to the project, so it serves all runs with these analyses.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.base import class_name
from analysis.report.headlines import CURVE, OVERALL, headlines_of, scalars
from analysis.report.report import VERDICTS
from analysis.results import ResultTable
from analysis.tracking.about import result_folder
from analysis.tracking.media import tables
from analysis.tracking.replay import rows_of
from analysis.tracking.wandb_run import STEP_AXIS, TOKEN_AXIS

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

TRAINING = {
    "Loss of training": "train/loss",
    "Held-out loss by language": "val/bits_per_byte/",
    "Speed": "perf/tokens_per_second",
}
"""Panels of the training, each by the beginning of its keys."""
MOST_LINES = 30
"""Lines of a panel: the layers of a model, or its languages."""


def make_view(root: Path, entity: str, project: str, name: str) -> Workspace:
    """The view for the keys of the run in `root`, not saved yet.

    Raises:
        FileNotFoundError: there is neither a record nor a result.
        ValueError: the package that makes views is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as blocks
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise ValueError("view: needs the extra `workspaces`; install it by pip install -e .[workspaces]") from None

    rows = list(rows_of(root))
    if not rows:
        raise FileNotFoundError(f"{root}: no rows and no results, so nothing that a view could show")
    keys = list(dict.fromkeys(key for row in rows for key in row["values"]))
    lines = {title: [key for key in keys if key.startswith(start)] for title, start in TRAINING.items()}
    headlines, heatmaps, written = [], [], []
    for analysis, overall, by_layer, stored in _measured(ResultTable(result_folder(root))):
        lines[f"{analysis}: headlines"] = overall
        lines[f"{analysis}: by layer"] = by_layer
        headlines += [f"panels/{key}" for key in overall]
        heatmaps += [f"heatmaps/{by_layer[0].rpartition('/')[0]}"] if by_layer else []
        written += stored
    axis = STEP_AXIS if any(row["kind"] == "train" for row in rows) else TOKEN_AXIS
    panels: list[Any] = [
        blocks.LinePlot(title=title, x=axis, y=found[:MOST_LINES]) for title, found in lines.items() if found
    ]
    media = {
        "With chance and step 0": headlines,
        "Layers by snapshots": heatmaps,
        "Experts, texts": written,
    }
    panels += [blocks.MediaBrowser(title=title, media_keys=found) for title, found in media.items() if found]
    section = workspaces.Section(name="What the model is doing", panels=panels, is_open=True)
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=[section])


def save_view(view: Workspace) -> str:
    """Save a view; returns its address.

    Raises:
        ValueError: nobody is logged in, or W&B refuses.
    """
    from wandb.errors import Error

    try:
        view.save()
        return str(view.url)
    except Error as error:
        raise ValueError(f"view: not saved, W&B says: {error}") from None


def _measured(table: ResultTable) -> Iterator[tuple[str, list[str], list[str], list[str]]]:
    """(analysis, keys of headlines, keys by layer, keys of tables) of the analyses that a verdict stands on."""
    newest = {name: (step, stamp) for step, name in table.entries() if (stamp := table.stamp(step, name)) is not None}
    for class_of in VERDICTS:
        for name, (step, stamp) in newest.items():
            if class_name(stamp["settings"]) == class_of:
                headlines = headlines_of(class_of)
                groups = scalars(name, table.rows(step, name), headlines)
                first = {f"{name}/{metric}" for metric in headlines}
                overall = [group.name for group in groups if group.rank == OVERALL and group.name in first]
                by_layer = [key for group in groups if group.rank == CURVE for key in group.values]
                yield name, overall, by_layer, [key for key, _ in tables(table, step, [name])]
