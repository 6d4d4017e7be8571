"""What the report knows of a run: its result frame, its training record, its settings. Read-only.

A run is either a folder of the trainer (`results/`, `metrics.jsonl`, `config.yaml`) or a bare result folder, as the
post-hoc runner makes it for a public model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from analysis.results import ResultTable


@dataclass(frozen=True)
class RunRecord:
    """One run as found on disk."""

    name: str
    folder: Path
    table: ResultTable
    frame: pd.DataFrame
    """All rows, columns `analysis.results.FRAME_COLUMNS`."""
    history: pd.DataFrame
    """Training record in long form: kind, step, tokens, time, key, value. Empty for public models."""
    config: dict
    identity: dict
    """Weights hashes, duplicates and drift as `analysis.checkpoints.audit` stored them, or {}."""

    @property
    def steps(self) -> list[int]:
        return sorted(self.frame["step"].unique().tolist())

    @property
    def tokens(self) -> dict[int, int | None]:
        """Step to tokens seen, of results and of the training record; None where that is not known."""
        seen = pd.concat([self.frame[["step", "tokens"]], self.history[["step", "tokens"]]]).drop_duplicates("step")
        return {int(step): None if pd.isna(tokens) else int(tokens) for step, tokens in seen.to_numpy(object)}

    def stamps(self) -> Iterator[tuple[int, str, dict]]:
        for step, analysis in self.table.entries():
            stamp = self.table.stamp(step, analysis)
            if stamp is not None:
                yield step, analysis, stamp


def read_run(folder: str | Path) -> RunRecord:
    """Read a run folder or a result folder.

    Raises:
        FileNotFoundError: there is no such folder, or no result in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give a run folder or a result folder")
    root = folder / "results" if (folder / "results").is_dir() else folder
    table = ResultTable(root)
    frame = table.frame()
    history = _read_history(folder / "metrics.jsonl")
    if frame.empty and history.empty:
        raise FileNotFoundError(
            f"{folder}: no results in it; measure its snapshots first with `python -m analysis run --config ...`"
        )
    name = str(frame["run"].iloc[0]) if not frame.empty else folder.resolve().name
    return RunRecord(
        name=name,
        folder=folder,
        table=table,
        frame=frame,
        history=history,
        config=_read_yaml(folder / "config.yaml"),
        identity=_read_json(root / "identity.json"),
    )


def read_metrics(path: str | Path) -> list[dict]:
    """All rows of a `metrics.jsonl` (kind, step, tokens, time, values); a torn last line (killed while writing) is
    left out, and no file means no rows.

    Raises:
        ValueError: a line in the middle is not JSON (file and line are named).
    """
    path = Path(path)
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines):
                raise ValueError(f"{path}:{number}: not a JSON row; remove the line to go on") from None
    return rows


def _read_history(path: Path) -> pd.DataFrame:
    columns = ["kind", "step", "tokens", "time", "key", "value"]
    records = [
        (row["kind"], row["step"], row["tokens"], row["time"], key, value)
        for row in read_metrics(path)
        for key, value in row["values"].items()
    ]
    return pd.DataFrame(records, columns=columns)


def _read_yaml(path: Path) -> dict:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
