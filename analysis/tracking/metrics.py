"""`metrics.jsonl`: every scalar of a run, one row a line; the truth of which W&B and the report are views.

    {"row": 17, "kind": "train", "step": 64, "tokens": 98304, "time": 1795647569.4, "values": {"train/loss": 5.6}}

Kinds are `train`, `val` and `analysis`, or what an analysis callback names its own. `row` grows from line to line and
is never used twice, so it says what a view has been given: W&B takes it as its own step. A training that goes on after
a kill computes some steps again. Their rows are in the file already and stay, since the same steps give the same
numbers; the first row that differs in more than a clock means another course, and takes the place of itself and all
those that have not been computed again by then.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.report.run import read_metrics
from babelscope.files import write_text

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """The file of a run that is being trained, opened for appending.

    Args:
        path: the file; a last line that a kill has torn is removed.
        first: smallest number of the next row, where a view was given rows that a full disk kept out of the file.

    Raises:
        ValueError: a line that is no row (names file and line).
    """

    def __init__(self, path: Path, first: int = 0) -> None:
        self.path = path
        rows = read_metrics(path)
        self.next_row = max(first, rows[-1]["row"] + 1 if rows else 0)
        self._known = {(row["kind"], row["step"]) for row in rows}
        self._ahead: dict[tuple[str, int], dict[str, Any]] = {}
        """Rows of steps that the training has yet to compute again."""
        if path.is_file() and not path.read_bytes().endswith(b"\n"):
            self._write(rows)

    def resume_at(self, step: int) -> None:
        """Training goes on from `step`: rows after it are kept until a computation contradicts them."""
        self._ahead = {(row["kind"], row["step"]): row for row in self.rows() if row["step"] > step}

    def has(self, kind: str, step: int) -> bool:
        """Whether a row of this kind is there for this step and needs no comparison with one that is computed again."""
        return (kind, step) in self._known and (kind, step) not in self._ahead

    def rows(self, after: int = -1) -> list[dict[str, Any]]:
        """All rows with a number above `after`."""
        return [row for row in read_metrics(self.path) if row["row"] > after]

    def add(self, kind: str, values: Mapping[str, float], step: int, tokens: int | None) -> dict[str, Any] | None:
        """Append one row and return it, or None if it is there already. Numbers that are not finite are left out."""
        for key, value in values.items():
            if not math.isfinite(value):
                log.warning("step %d: %s is %s and is not recorded", step, key, value)
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        before = self._ahead.pop((kind, step), None)
        same = before is None or _without_clocks(before["values"]) == _without_clocks(finite)
        if same and (kind, step) in self._known:
            return None
        row = {"row": self.next_row, "kind": kind, "step": step, "tokens": tokens, "time": time.time()}
        row |= {"values": finite}
        self.next_row += 1
        try:
            if before is not None:
                self._drop_unconfirmed(kind, step)
            self._append(f"{json.dumps(row)}\n".encode())
        except OSError as error:  # a full disk must not end the training
            log.warning("step %d: row not written to metrics.jsonl: %s", step, error)
        self._known.add((kind, step))
        return row

    def _drop_unconfirmed(self, kind: str, step: int) -> None:
        """Remove what another course of the training wrote: this row, and all that have not been computed again."""
        dropped = {(kind, step), *self._ahead}
        self._ahead.clear()
        self._known -= dropped
        self._write([row for row in self.rows() if (row["kind"], row["step"]) not in dropped])

    def _append(self, line: bytes) -> None:
        """The whole line or nothing of it: on the rest of a torn one the next row would be lost, too."""
        with self.path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(size)
                raise

    def _write(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def _without_clocks(values: Mapping[str, float]) -> dict[str, float]:
    return {key: x for key, x in values.items() if not key.startswith("perf/") and "_cost/" not in key}
