"""What the report knows of a run: its result frame, its training record, its settings. Read-only.

A run is either a folder of the trainer (`results/`, `metrics.jsonl`, `config.yaml`) or a bare result folder, as the
post-hoc runner makes it for a public model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from safetensors import safe_open

from analysis.base import class_name
from analysis.preregistration import check_plan
from analysis.results import ResultTable
from babelscope.yaml_text import read_yaml

BROKEN = 1.5
"""Ratio of held-out losses from which a later checkpoint counts as broken."""


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
    about: dict
    """What the trainer noted of the run (`run.json`), or {}."""
    identity: dict
    """Weights hashes, duplicates and drift as `analysis.checkpoints.audit` stored them, or {}."""
    registered: str = ""
    """A sentence on the plan that was fixed before the run was measured, if there is one."""

    @property
    def steps(self) -> list[int]:
        return sorted(self.frame["step"].unique().tolist())

    @property
    def tokens(self) -> dict[int, int | None]:
        """Step to tokens seen, of results and of the training record; None where that is not known."""
        seen = pd.concat([self.frame[["step", "tokens"]], self.history[["step", "tokens"]]]).drop_duplicates("step")
        return {int(step): None if pd.isna(tokens) else int(tokens) for step, tokens in seen.to_numpy(object)}

    @cached_property
    def usable_steps(self) -> list[int]:
        """Steps whose checkpoint may feed a verdict: no copy of an earlier one, and not worse than noise.

        A published suite may hold a revision with the weights of another step, or a broken file (BLOOM-560m at 500000
        and 600000). A copy is what the audit says; broken is a held-out loss above that of a uniform guess over the
        vocabulary, or more than `BROKEN` times the lowest one seen at an earlier step.
        """
        copies = {int(step) for group in self.identity.get("duplicates", []) for step in sorted(group)[1:]}
        rows = self.frame[self.frame["metric"].isin(["bits_per_byte", "bits_per_byte_uniform"])]
        rows = rows[rows[["language", "condition", "layer", "seed", "concept"]].isna().all(axis=1)]
        bits, uniform = (
            rows[rows["metric"] == metric].groupby("step")["value"].mean()
            for metric in ("bits_per_byte", "bits_per_byte_uniform")
        )
        usable, lowest = [], math.inf
        for step in self.steps:
            loss = float(bits.get(step, math.nan))
            if step not in copies and not (loss > BROKEN * lowest or (step > 0 and loss > uniform.get(step, math.inf))):
                usable.append(step)
                lowest = min(lowest, loss) if math.isfinite(loss) else lowest
        return usable

    @cached_property
    def unusable(self) -> list[int]:
        return [step for step in self.steps if step not in self.usable_steps]

    def null_band(self, analysis: str) -> pd.DataFrame:
        """Rows of random networks of the same configuration: columns of `frame` and `network`; empty without any."""
        return self.table.null_band(analysis)

    @cached_property
    def classes(self) -> dict[str, str]:
        """Name of every analysis to its class."""
        return {analysis: class_name(stamp["settings"]) for _, analysis, stamp in self.stamps()}

    @cached_property
    def parameters(self) -> int | None:
        """Number of parameters, from the header of the last snapshot; None without one."""
        files = sorted((self.folder / "snapshots").glob("step_*/model.safetensors"))
        if not files:
            return None
        with safe_open(files[-1], framework="np") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118

    def stamps(self) -> Iterator[tuple[int, str, dict]]:
        for step, analysis in self.table.entries():
            stamp = self.table.stamp(step, analysis)
            if stamp is not None:
                yield step, analysis, stamp


def read_run(folder: str | Path) -> RunRecord:
    """Read a run folder or a result folder.

    Raises:
        FileNotFoundError: there is no such folder, or no result in it.
        ValueError: the results differ from the run's plan, see `analysis.preregistration`.
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
        about=_read_json(folder / "run.json"),
        identity=_read_json(root / "identity.json"),
        registered=check_plan(folder, table),
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
    content = read_yaml(path) if path.is_file() else None
    return content if isinstance(content, dict) else {}


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def analyses_of_class(record: RunRecord, *classes: str) -> list[str]:
    """Names under which analyses of these classes (`ConceptOverlap`, ...) stored results in the run."""
    return sorted(name for name, class_of in record.classes.items() if class_of in classes)
