"""A whole W&B page made again from a run folder, or made for the first time from post-hoc results.

Rows come from `metrics.jsonl`; a step that was measured later, or a run that was never trained here (a published
suite), gets its row of analyses from the result table, under the same keys. Runs without a training record are drawn
over tokens where these are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from analysis.base import class_name
from analysis.report.headlines import KEY_BUDGET, headlines_of, scalars, within_budget
from analysis.report.run import read_json, read_metrics
from analysis.results import ResultTable
from analysis.tracking.about import configuration, result_folder
from analysis.tracking.media import COST, media_of
from analysis.tracking.metrics import METRICS_FILE
from analysis.tracking.wandb_run import TOKEN_AXIS, Page, WandbRun


def replay(root: Path, page: Page) -> str:
    """Make a fresh W&B run of everything in `root`; returns where it is.

    Raises:
        FileNotFoundError: there is neither a record nor a result.
        ValueError: a file of the run is broken.
        OSError: W&B could not be started.
    """
    rows = list(rows_of(root))
    if not rows:
        raise FileNotFoundError(f"{root}: no rows in {METRICS_FILE} and no results; nothing to replay")
    trained = (root / METRICS_FILE).is_file()
    if not trained:
        page = replace(page, job_type="analyze")
        if all(row["tokens"] is not None for row in rows):
            page = replace(page, axis=TOKEN_AXIS)
    known = read_json(root / "run.json")
    name = known.get("name") or ResultTable(result_folder(root)).run_name or root.resolve().name
    identity = known | {"name": name, "wandb_id": uuid4().hex[:12]}
    configuration(root, identity)  # refuses a broken file before W&B is started
    view = WandbRun(root, page, identity, partial(media_of, result_folder(root)), fresh=True)
    for row in rows:
        view.send(row)
    view.finish(0)
    if view.location is None:
        raise OSError("W&B could not be started; see the warning above")
    return view.location


def rows_of(root: Path) -> Iterator[dict[str, Any]]:
    """All rows of a run by step, numbered from 0: those of the record, and those of steps that only have results."""
    recorded = read_metrics(root / METRICS_FILE)
    table = ResultTable(result_folder(root))
    shown = {(row["step"], key.removeprefix(COST)) for row in recorded for key in row["values"] if key.startswith(COST)}
    measured = [row for step in table.steps() if (row := _measured_row(table, step, shown)) is not None]
    for number, row in enumerate(sorted([*recorded, *measured], key=lambda row: row["step"])):
        yield {**row, "row": number}


def _measured_row(table: ResultTable, step: int, shown: set[tuple[int, str]]) -> dict[str, Any] | None:
    """A row of the analyses of a step that the record does not have."""
    stamps: Mapping[str, dict] = {
        name: stamp
        for at, name in table.entries()
        if at == step and (step, name) not in shown and (stamp := table.stamp(step, name)) is not None
    }
    if not stamps:
        return None
    groups = {
        name: scalars(name, table.rows(step, name), headlines_of(class_name(stamp["settings"])))
        for name, stamp in stamps.items()
    }
    cost = {f"{COST}{name}": float(stamp["seconds"]) for name, stamp in stamps.items()}
    tokens = next(iter(stamps.values()))["tokens"]
    values = within_budget(groups, KEY_BUDGET - len(cost)) | cost
    return {"kind": "analysis", "step": step, "tokens": tokens, "time": 0.0, "values": values}
