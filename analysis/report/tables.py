"""A titled table of strings, for the page and for the terminal."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal

import rich.table
from rich.console import Console
from rich.markup import escape

SHORT = 9
"""Characters up to which a cell is never broken, so that numbers stay whole in a narrow terminal."""


@dataclass(frozen=True)
class Table:
    """A titled table of strings; the first column names the rows."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def number(value: float | None) -> str:
    """Four decimals; empty where there is no number."""
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def p_value(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def with_interval(value: float, low: float | None, high: float | None, form: str = ".3f") -> str:
    """`0.175 [0.162, 0.188]`; the value alone where there is no interval."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return f"{value:{form}}"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


FILE_WIDTH = 220
"""Characters of a line where the output is a file or a pipe, which have no edge."""


def open_console() -> Console:
    """Standard output for sentences, which wrap by themselves, and for tables, of which nothing is cut off."""
    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH, soft_wrap=True)


def console_table(table: Table) -> rich.table.Table:
    """For a terminal: the first column to the left, numbers to the right, the note below."""
    drawn = rich.table.Table(
        title=escape(table.title), caption=escape(table.note) or None, title_justify="left", caption_justify="left"
    )
    for index, name in enumerate(table.header):
        longest = max((len(row[index]) for row in table.rows), default=0)
        justify: Literal["left", "right"] = "left" if index == 0 else "right"
        drawn.add_column(escape(name), justify=justify, no_wrap=max(longest, len(name)) <= SHORT, overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    return drawn
