"""What the report knows of a run: its result frame, its training record, its settings. Read-only.

A run is either a folder of the trainer (`results/`, `metrics.jsonl`, `config.yaml`) or a bare result folder, as the
post-hoc runner makes it for a public model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from analysis.base import class_name
from analysis.preregistration import check_plan
from analysis.results import ResultTable, way_of
from babelscope.yaml_text import read_config

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

    _bands: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)
    """What `null_band` has read."""

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
        """Steps whose checkpoint may feed a verdict: no copy of an earlier one (as the audit says), and not broken.

        A published suite may hold a revision with the weights of another step, or a broken file (BLOOM-560m at 500000
        and 600000).
        """
        copies = {int(step) for group in self.identity.get("duplicates", []) for step in sorted(group)[1:]}
        broken = {step for _, rows in self.frame.groupby("analysis") for step in broken_steps(rows)}
        return [step for step in self.steps if step not in copies | broken]

    @cached_property
    def unusable(self) -> list[int]:
        return [step for step in self.steps if step not in self.usable_steps]

    def usable(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Those rows whose step may feed a verdict, by step."""
        return rows[rows["step"].isin(self.usable_steps)].sort_values("step", kind="stable")

    def null_band(self, analysis: str) -> pd.DataFrame:
        """Rows of random networks of the same configuration: columns of `frame` and `network`; empty without any."""
        if analysis not in self._bands:
            self._bands[analysis] = self.table.null_band(analysis)
        return self._bands[analysis]

    @cached_property
    def settings(self) -> dict[str, dict]:
        """Name of every analysis to the settings of its newest result."""
        return {analysis: stamp["settings"] for _, analysis, stamp in self.stamps}

    @cached_property
    def classes(self) -> dict[str, str]:
        """Name of every analysis to its class."""
        return {analysis: class_name(settings) for analysis, settings in self.settings.items()}

    @cached_property
    def parameters(self) -> tuple[int, int] | None:
        """All parameters, and those without embeddings; None where they are not known."""
        return count_parameters(self.folder)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """What is known of the size of the model: `parameters` without embeddings, `units` that ConceptOverlap ranked.

        Results of before 2026-11-26 do not say the parameters; then they are those of the last snapshot, if there is
        one.
        """
        stamped = [stamp["parameters"] for _, _, stamp in self.stamps if "parameters" in stamp]
        overlaps = analyses_of_class(self, "ConceptOverlap")
        counted = [units for name in overlaps if (units := num_units(self, name)) is not None]
        found = {
            "parameters": stamped[-1] if stamped else self.parameters[1] if self.parameters else None,
            "units": counted[0] if counted else None,
        }
        return {name: size for name, size in found.items() if size is not None}

    @cached_property
    def stamps(self) -> list[tuple[int, str, dict]]:
        """Step, analysis and what the writer noted of it, of every result that can be read."""
        found = ((step, analysis, self.table.stamp(step, analysis)) for step, analysis in self.table.entries())
        return [(step, analysis, stamp) for step, analysis, stamp in found if stamp is not None]

    @cached_property
    def warnings(self) -> list[str]:
        """What makes results incomplete or incomparable: unreadable files, and settings or precision that changed."""
        read = {(step, analysis) for step, analysis, _ in self.stamps}
        torn = [f"{analysis} at step {step}" for step, analysis in self.table.entries() if (step, analysis) not in read]
        said = [f"Not readable: {', '.join(torn)}; `python -m analysis run` measures it again."] if torn else []
        ways: dict[str, dict[tuple[str, str], list[str]]] = {}
        for step, analysis, stamp in self.stamps:
            ways.setdefault(analysis, {}).setdefault(way_of(stamp), []).append(str(step))
        for analysis, steps_of in ways.items():
            if len(steps_of) > 1:
                groups = "; ".join(", ".join(steps) for steps in steps_of.values())
                said.append(
                    f"Mixed settings: {analysis} was measured in {len(steps_of)} ways (steps {groups}), which do not "
                    "compare; `python -m analysis run` measures again what differs from its list."
                )
        return said


def broken_steps(rows: pd.DataFrame) -> set[int]:
    """Steps at which the held-out loss of one analysis, whose rows these are, is not that of a trained network.

    It is more than `BROKEN` times the lowest one seen at an earlier step, or above that of a uniform guess over the
    vocabulary (the chance of `perplexity`) although an earlier step was below, or no step is: the first steps of a
    training are above it, too.
    """
    whole = rows[rows[["condition", "layer", "seed", "concept"]].isna().all(axis=1)]
    bits = whole[(whole["metric"] == "bits_per_byte") & whole["language"].isna()].groupby("step")["value"].mean()
    broken, lowest = set(), math.inf
    for step, loss in bits.items():
        if loss > BROKEN * lowest:
            broken.add(step)
        lowest = min(lowest, loss)
    guess = whole[whole["metric"] == "perplexity"].dropna(subset=["chance"])
    above = np.log(guess["value"] / guess["chance"]).groupby(guess["step"]).mean() > 0.0  # mean over languages
    began = min(above.index[~above], default=0)
    return broken | {step for step in above.index[above] if step > began}


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
        config=read_config(folder / "config.yaml") or {},
        about=read_json(folder / "run.json"),
        identity=read_json(root / "identity.json"),
        registered=check_plan(folder, table),
    )


def count_parameters(folder: Path) -> tuple[int, int] | None:
    """All parameters, and those without embeddings; from the header of the last snapshot of a run folder, None without
    one that can be read."""
    files = sorted((folder / "snapshots").glob("step_*/model.safetensors"))
    if not files:
        return None
    try:
        vocabulary = read_json(files[-1].with_name("config.json")).get("vocab_size")
        with safe_open(files[-1], framework="np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (not a mapping)
    except (OSError, ValueError, SafetensorError):
        return None
    sizes = [(math.prod(shape), bool(shape) and shape[0] == vocabulary) for shape in shapes]
    return sum(size for size, _ in sizes), sum(size for size, embeds in sizes if not embeds)


def differing(results: Iterable[tuple[RunRecord, str]]) -> list[str]:
    """What the newest results of analyses (run, name) differ in: options, and `dtype` for the precision."""
    found = []
    for record, name in results:
        newest = [stamp for _, analysis, stamp in record.stamps if analysis == name][-1]
        found.append({**newest["settings"], "dtype": way_of(newest)[1]})
    return sorted({key for one in found for key in one if any(one[key] != other.get(key) for other in found)})


def num_units(record: RunRecord, analysis: str) -> int | None:
    """N of a ConceptOverlap, from its K (as set, or that of the experts stored last) and chance K / N; None without."""
    shared = record.frame[(record.frame["analysis"] == analysis) & (record.frame["metric"] == "shared")]
    shared = shared[shared[["language", "condition", "concept"]].isna().all(axis=1)].dropna(subset=["chance"])
    if shared.empty or not shared["chance"].iloc[-1]:
        return None
    k = record.settings[analysis]["k"]
    if record.settings[analysis].get("share") is not None:
        try:
            ranks = record.table.attachment(int(shared["step"].iloc[-1]), analysis, "experts")["rank"]
        except FileNotFoundError:
            return None
        k = max(ranks.to_pylist()) + 1
    return round(k / shared["chance"].iloc[-1])


def read_metrics(path: str | Path) -> list[dict]:
    """All rows of a `metrics.jsonl` (row, kind, step, tokens, time, values; see `analysis.tracking.metrics`).

    A torn last line (killed while writing) is left out, and no file means no rows. Rows of before 2026-11-26 have no
    number; they get that of their line.

    Raises:
        ValueError: a line in the middle is no row (file and line are named).
    """
    path = Path(path)
    rows: list[dict] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is not None:
            rows.append({"row": rows[-1]["row"] + 1 if rows else 0} | row)
        elif number != len(lines):
            raise ValueError(f"{path}:{number}: not a JSON row; remove the line to go on")
    return rows


def _row(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    whole = isinstance(row, dict) and row.keys() >= {"kind", "step", "tokens", "time", "values"}
    return row if whole and isinstance(row["step"], int) and isinstance(row["values"], dict) else None


def _read_history(path: Path) -> pd.DataFrame:
    columns = ["kind", "step", "tokens", "time", "key", "value"]
    records = [
        (row["kind"], row["step"], row["tokens"], row["time"], key, value)
        for row in read_metrics(path)
        for key, value in row["values"].items()
    ]
    return pd.DataFrame(records, columns=columns)


def read_json(path: Path) -> dict:
    """The keys of a JSON file, {} without a file.

    Raises:
        ValueError: the file is not JSON with keys.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not JSON with keys; put it back, or remove the file")
    return content


def analyses_of_class(record: RunRecord, *classes: str) -> list[str]:
    """Names under which analyses of these classes (`ConceptOverlap`, ...) stored results in the run."""
    return sorted(name for name, class_of in record.classes.items() if class_of in classes)
