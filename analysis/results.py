"""The table of results: the truth on disk of which W&B, the report and notebooks are views.

    <root>/                            one run, e.g. runs/demo/results or results/bloom-560m
      step_00000016/
        overlap.parquet                rows; schema metadata: run, step, tokens, fingerprint, settings, seconds
        overlap.experts.parquet        attachments of the same analysis
      null_0/step_00000000/            the same of random networks, see analysis/checkpoints/random_networks.py

A file is written to a temporary name in the same folder, synced and renamed, attachments before rows: the rows' file is
the done marker. `has` is true only for the same settings, so a result is never stale.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.base import Analysis, Attachment, Row, fingerprint_of
from analysis.snapshots import SnapshotId, step_name, step_of
from babelscope.files import write_file

if TYPE_CHECKING:
    import pandas as pd

_TYPES = {"str": pa.string(), "int": pa.int32(), "float": pa.float64()}
ROW_SCHEMA = pa.schema([(field.name, _TYPES[str(field.type).partition(" ")[0]]) for field in fields(Row)])
"""Columns of a rows file: the fields of `Row`."""
FRAME_COLUMNS = ["run", "step", "tokens", "analysis", *ROW_SCHEMA.names]
"""Columns of every frame that `ResultTable.frame` returns."""


def null_folder(root: Path, number: int) -> Path:
    """Results of one random network of a run, a table of its own."""
    return root / f"null_{number}"


def way_of(stamp: dict) -> tuple[str, str]:
    """What results must agree in to compare: the fingerprint of their settings, and the precision of the forward pass
    (a live run, whose stamps do not say it, measures in float32)."""
    return fingerprint_of(stamp["settings"]), stamp.get("dtype", "float32")


class ResultTable:
    """Rows of all analyses of one run under `root`. Only the first process of a distributed run may write."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, step: int) -> Path:
        return self.root / step_name(step)

    def path(self, step: int, analysis: str, attachment: str | None = None) -> Path:
        name = analysis if attachment is None else f"{analysis}.{attachment}"
        return self.folder(step) / f"{name}.parquet"

    def has(self, snapshot_id: SnapshotId, analysis: Analysis) -> bool:
        """True if rows of this analysis with exactly these settings are there for this run and step."""
        stamp = self.stamp(snapshot_id.step, analysis.name)
        if stamp is None or stamp["run"] != snapshot_id.run:
            return False
        return fingerprint_of(stamp["settings"]) == analysis.fingerprint()

    def stamp(self, step: int, analysis: str) -> dict | None:
        """The metadata that the writer put into a rows file, or None if there is no readable file."""
        return _stamp_in(self.path(step, analysis))

    def tell_tokens(self, snapshot_id: SnapshotId) -> bool:
        """Let the stamps of this run and step say the tokens of `snapshot_id`; the numbers stay. True if any did not.

        Tokens come from the names of checkpoints or from a setting that may be found later, and are no part of what a
        result depends on. Where they are unknown now, what was known stays.
        """
        told = False
        known = snapshot_id.tokens is not None
        for path in sorted(self.folder(snapshot_id.step).glob("*.parquet")) if known else ():
            stamp = _stamp_in(path)
            if stamp is not None and stamp["run"] == snapshot_id.run and stamp["tokens"] != snapshot_id.tokens:
                _write_stamped(path, _read(path), {**stamp, "tokens": snapshot_id.tokens})
                told = True
        return told

    def write(
        self,
        snapshot_id: SnapshotId,
        analysis: Analysis,
        measured: Iterable[Row | Attachment],
        seconds: float,
        extra: dict | None = None,
    ) -> list[Row]:
        """Store what `analysis.measure` gave for one snapshot; returns the rows.

        Nothing is written before `measured` is exhausted, so an analysis that raises leaves no file. Attachments of an
        earlier measurement that this one lacks are removed.
        `seconds` is the wall time that the measurement took; `extra` enters the stamp (weights hash and the like).
        """
        rows: list[Row] = []
        attachments: list[Attachment] = []
        for item in measured:
            if isinstance(item, Row):
                rows.append(item)
            else:
                attachments.append(item)
        if not rows:
            raise ValueError(
                f"analysis {analysis.name!r} gave no rows for step {snapshot_id.step} of {snapshot_id.run}"
            )
        stamp = {
            **(extra or {}),
            "run": snapshot_id.run,
            "step": snapshot_id.step,
            "tokens": snapshot_id.tokens,
            "analysis": analysis.name,
            "fingerprint": analysis.fingerprint(),
            "settings": analysis.settings(),
            "seconds": seconds,
        }
        written = set()
        for attachment in attachments:
            written.add(path := self.path(snapshot_id.step, analysis.name, attachment.name))
            _write_stamped(path, attachment.table, stamp)
        for path in set(self.folder(snapshot_id.step).glob(f"{analysis.name}.*.parquet")) - written:
            path.unlink(missing_ok=True)  # of an earlier measurement, which does not belong to these rows
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=ROW_SCHEMA)
        _write_stamped(self.path(snapshot_id.step, analysis.name), table, stamp)
        return rows

    def steps(self) -> list[int]:
        """Steps for which there is any result, ascending."""
        found = (step_of(path.name) for path in self.root.glob("*") if path.is_dir())
        return sorted(step for step in found if step is not None)

    @property
    def run_name(self) -> str | None:
        """Name of the run whose results these are, None without any."""
        stamps = (self.stamp(step, analysis) for step, analysis in self.entries())
        return next((stamp["run"] for stamp in stamps if stamp is not None), None)

    def rows(self, step: int, analysis: str) -> list[Row]:
        """The rows of one analysis at one step, in the order in which they were measured."""
        path = self.path(step, analysis)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such result; steps with results: {self.steps()}")
        return [Row(**record) for record in _read_rows(path).to_pylist()]

    def attachment(self, step: int, analysis: str, name: str) -> pa.Table:
        path = self.path(step, analysis, name)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such result; steps with results: {self.steps()}")
        return _read(path)

    def frame(self, analyses: Sequence[str] = ()) -> pd.DataFrame:
        """All rows as one tidy frame with `FRAME_COLUMNS`; `analyses` restricts it. Empty if there are none."""
        import pandas as pd  # half a second that a command's --help need not wait for

        frames = []
        for step, analysis in self.entries():
            if analyses and analysis not in analyses:
                continue
            stamp = self.stamp(step, analysis)
            if stamp is None:
                continue
            frame = _read_rows(self.path(step, analysis)).to_pandas()
            frame.insert(0, "run", stamp["run"])
            frame.insert(1, "step", step)
            frame.insert(2, "tokens", stamp["tokens"])
            frame.insert(3, "analysis", analysis)
            frames.append(frame)
        if not frames:
            return pd.DataFrame(columns=FRAME_COLUMNS)
        return pd.concat([frame.astype({"tokens": "Int64"}) for frame in frames], ignore_index=True)

    def null_band(self, analysis: str) -> pd.DataFrame:
        """Rows of one analysis on the run's random networks: `FRAME_COLUMNS` and `network` (0, 1 ...).

        Networks that were measured in another way than the newest result of the run (`way_of`) are left out; empty if
        there are none. Networks of before 2026-11-26 do not say their precision and are taken to be of that one.
        """
        import pandas as pd

        stamps = [self.stamp(step, analysis) for step in self.steps()]
        newest = next((stamp for stamp in reversed(stamps) if stamp is not None), None)
        frames = []
        for folder in sorted(self.root.glob("null_*")) if newest is not None else ():
            table = ResultTable(folder)
            stamp = table.stamp(0, analysis)
            if stamp is None or newest is None or way_of({"dtype": way_of(newest)[1], **stamp}) != way_of(newest):
                continue
            frames.append(table.frame([analysis]).assign(network=int(folder.name.removeprefix("null_"))))
        if not frames:
            return pd.DataFrame(columns=[*FRAME_COLUMNS, "network"])
        return pd.concat(frames, ignore_index=True)

    def entries(self) -> Iterator[tuple[int, str]]:
        """(step, analysis) of every rows file, by step and name."""
        for step in self.steps():
            for path in sorted(self.folder(step).glob("*.parquet")):
                if "." not in path.stem:
                    yield step, path.stem


def _stamp_in(path: Path) -> dict | None:
    try:
        return json.loads((pq.read_schema(path).metadata or {})[b"babelscope"])
    except (KeyError, pa.ArrowInvalid, json.JSONDecodeError):
        return None
    except OSError as error:
        if error.errno in (None, errno.ENOENT):  # a damaged footer has none
            return None
        raise


def _read(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    try:
        return pq.read_table(path, schema=schema)
    except (OSError, pa.ArrowInvalid) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read ({said}); delete it and measure again") from None


def _read_rows(path: Path) -> pa.Table:
    """The rows of a file. Before 2026-11-25 condition and K stood in `kind`, as `experts@500`; they are moved here."""
    table = _read(path, ROW_SCHEMA)
    if "condition" in pq.read_schema(path).names:
        return table
    parts = [(kind or "").partition("@") for kind in table["kind"].to_pylist()]
    moved = [bool(k) or kind == "none" for kind, _, k in parts]
    columns = {
        "kind": [None if move else kind or None for (kind, _, _), move in zip(parts, moved, strict=True)],
        "condition": [kind if move else None for (kind, _, _), move in zip(parts, moved, strict=True)],
        "k": [int(k) if k else None for _, _, k in parts],
    }
    for name, values in columns.items():
        field = ROW_SCHEMA.field(name)
        table = table.set_column(ROW_SCHEMA.names.index(name), field, pa.array(values, field.type))
    return table


def _write_stamped(path: Path, table: pa.Table, stamp: dict) -> None:
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"babelscope": json.dumps(stamp).encode()})
    write_file(path, lambda file: pq.write_table(table, file, compression="zstd"))
