"""Tables and numbers as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.statistics import Contrast


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Heading, note and table."""
        lines = [f"### {self.title}", "", self.note, "", _line(self.header), _line(["---"] * len(self.header))]
        return "\n".join([*lines, *map(_line, self.rows)]) + "\n"


def interval(contrast: Contrast, digits: int = 4) -> str:
    return f"{contrast.difference:+.{digits}f} [{contrast.low:+.{digits}f}, {contrast.high:+.{digits}f}]"


def signs(values: Sequence[float] | np.ndarray | pd.Series) -> str:
    """A sign for each seed, in their order; a dot where it has no number."""
    return " ".join("+" if value > 0 else "-" if value < 0 else "0" if value == 0 else "·" for value in values)


def numbered(what: str, values: Sequence[int]) -> str:
    """seed 1; seeds 1, 2, 4."""
    return f"{what}{'s' if len(values) > 1 else ''} {', '.join(f'{value:,}' for value in values)}"


def steps_of(mean: Contrast | None) -> str:
    """Octaves as steps."""
    if mean is None:
        return "only bounded"
    return f"{2**mean.difference:,.0f} [{2**mean.low:,.0f}, {2**mean.high:,.0f}]"


def when(inside: int, outside: int | None) -> str:
    return f"after {inside:,}" if outside is None else f"{inside:,} to {outside:,}"


def mean_at(table: pd.DataFrame, step: int, digits: int = 3) -> str:
    return f"{table.loc[step].mean():.{digits}f}" if step in table.index else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
