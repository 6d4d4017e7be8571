"""The result table: atomic, never stale, and equal to what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.base import Analysis, Attachment, Row
from analysis.results import FRAME_COLUMNS, ResultTable
from analysis.snapshots import Snapshot, SnapshotId


@dataclass(kw_only=True)
class Fixed(Analysis):
    default_name: ClassVar[str] = "fixed"
    k: int = 5

    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        yield Row(
            metric="shared", value=1 / 3, language="de", other_language="en", chance=0.1, low=0.2, high=0.4, p=0.01
        )
        yield Attachment("experts", pa.table({"unit": [3, 1, 2]}))
        yield Row(metric="accuracy", value=0.1 + 0.2, layer=-1, seed=2)


HERE = SnapshotId("demo", 16, tokens=4096)


@pytest.fixture
def table(tmp_path: Path) -> ResultTable:
    return ResultTable(tmp_path / "results")


def measured(analysis: Analysis) -> list[Row | Attachment]:
    return list(analysis.measure(None))  # type: ignore[arg-type]


def test_rows_come_back_bit_for_bit_and_in_order(table: ResultTable) -> None:
    analysis = Fixed()
    expected = [item for item in measured(analysis) if isinstance(item, Row)]
    assert table.write(HERE, analysis, measured(analysis), seconds=0.5) == expected
    assert table.rows(16, "fixed") == expected
    assert table.attachment(16, "fixed", "experts").column("unit").to_pylist() == [3, 1, 2]


def test_measured_again_without_an_attachment_the_old_one_is_gone(table: ResultTable) -> None:
    table.write(HERE, Fixed(), measured(Fixed()), seconds=0.5)
    table.write(HERE, Fixed(name="fixed_too"), measured(Fixed()), seconds=0.5)
    table.write(HERE, Fixed(k=6), [Row(metric="shared", value=0.5)], seconds=0.5)
    with pytest.raises(FileNotFoundError, match="no such result"):
        table.attachment(16, "fixed", "experts")
    assert table.attachment(16, "fixed_too", "experts").num_rows == 3


def test_frame_stamps_run_step_tokens_and_analysis(table: ResultTable) -> None:
    table.write(HERE, Fixed(), measured(Fixed()), seconds=0.5)
    table.write(SnapshotId("demo", 2, None), Fixed(), measured(Fixed()), seconds=0.5)
    frame = table.frame()
    assert list(frame.columns) == FRAME_COLUMNS
    assert list(frame["step"]) == [2, 2, 16, 16]
    assert frame["tokens"].isna().tolist() == [True, True, False, False]
    assert set(frame["run"]) == {"demo"}
    assert table.frame(analyses=["other"]).empty


def test_has_means_present_with_the_same_settings(table: ResultTable) -> None:
    assert not table.has(HERE, Fixed())
    table.write(HERE, Fixed(k=5), measured(Fixed()), seconds=0.5)
    assert table.has(HERE, Fixed(k=5))
    assert not table.has(HERE, Fixed(k=6)), "other settings: stale"
    assert not table.has(SnapshotId("other", 16), Fixed(k=5)), "another run in the same folder"


def test_an_analysis_that_raises_leaves_no_file(table: ResultTable) -> None:
    def broken() -> Iterable[Row | Attachment]:
        yield Row(metric="shared", value=1.0)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        table.write(HERE, Fixed(), broken(), seconds=0.0)
    assert not list(table.root.rglob("*"))


@pytest.mark.parametrize("damage", ["torn", "footer"])
def test_a_torn_file_counts_as_missing_and_is_replaced(table: ResultTable, damage: str) -> None:
    table.write(HERE, Fixed(), measured(Fixed()), seconds=0.5)
    path = table.path(16, "fixed")
    content = path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")  # of the footer
    path.write_bytes(content[:40] if damage == "torn" else content[: -8 - size] + b"\x7f" * size + content[-8:])
    assert not table.has(HERE, Fixed())
    table.write(HERE, Fixed(), measured(Fixed()), seconds=0.5)
    assert table.has(HERE, Fixed())


def test_a_damaged_page_names_its_file(table: ResultTable) -> None:
    table.write(HERE, Fixed(), measured(Fixed()), seconds=0.5)
    for path, read in (
        (table.path(16, "fixed"), lambda: table.rows(16, "fixed")),
        (table.path(16, "fixed", "experts"), lambda: table.attachment(16, "fixed", "experts")),
    ):
        content = path.read_bytes()
        path.write_bytes(content[:4] + b"\x7f" * 60 + content[64:])
        with pytest.raises(ValueError, match=rf"{path.name}: cannot be read .*; delete it and measure again"):
            read()


def test_nothing_measured_is_an_error_not_an_empty_result(table: ResultTable) -> None:
    with pytest.raises(ValueError, match="gave no rows for step 16 of demo"):
        table.write(HERE, Fixed(), [], seconds=0.0)


def test_a_missing_result_names_the_steps_there_are(table: ResultTable) -> None:
    table.write(HERE, Fixed(), measured(Fixed()), seconds=0.5)
    with pytest.raises(FileNotFoundError, match=r"steps with results: \[16\]"):
        table.rows(32, "fixed")


def test_results_stamped_with_a_module_path_still_count(table: ResultTable) -> None:
    """Before 2026-11-25 a stamp named the class with its module: such results are read and not measured again."""
    table.write(HERE, Fixed(), measured(Fixed()), seconds=0.5)
    path, stamp = table.path(16, "fixed"), table.stamp(16, "fixed")
    assert stamp is not None

    def restamp(**settings: object) -> None:
        old = {**stamp, "fingerprint": "0123456789abcdef", "settings": {**stamp["settings"], **settings}}
        rows = pq.read_table(path)
        pq.write_table(rows.replace_schema_metadata({b"babelscope": json.dumps(old).encode()}), path)

    restamp(analysis="analysis.elsewhere.Fixed")
    assert table.has(HERE, Fixed())
    restamp(analysis="analysis.elsewhere.Fixed", k=6)
    assert not table.has(HERE, Fixed())


def test_a_file_written_before_a_column_was_added_is_read_with_that_column_empty(table: ResultTable) -> None:
    table.write(HERE, Fixed(), measured(Fixed()), seconds=0.5)
    path = table.path(16, "fixed")
    pq.write_table(pq.read_table(path).drop_columns(["condition", "k"]), path)
    assert table.rows(16, "fixed") == [item for item in measured(Fixed()) if isinstance(item, Row)]
    assert list(table.frame().columns) == FRAME_COLUMNS
    assert table.frame()[["condition", "k"]].isna().all().all()


def test_conditions_that_an_old_file_holds_in_its_kind_are_moved_to_their_columns(table: ResultTable) -> None:
    kinds = ["experts@500", "none", "attn.q", None]
    rows = [Row(metric="concept_hit", value=0.5, kind=kind) for kind in kinds]
    table.write(HERE, Fixed(), rows, seconds=0.5)
    path = table.path(16, "fixed")
    pq.write_table(pq.read_table(path).drop_columns(["condition", "k"]), path)
    found = [(row.kind, row.condition, row.k) for row in table.rows(16, "fixed")]
    assert found == [(None, "experts", 500), (None, "none", None), ("attn.q", None, None), (None, None, None)]
