"""What the repository holds of the runs (`results/*.parquet`, made by `collect.py`), as the arrays that decisions,
tables and figures read.

Shapes:  R seeds   C concepts   T snapshots   G groups of sentence keys
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from studies.first_light.decisions import dip_values

SEEDS = 5
LAST = 20_480
WIDTH = 128
CAPACITY_LAST = 10_240
DEAR = (
    *("causal_own", "causal_transfer", "causal_transfer_random"),
    *("direction_own", "direction_transfer", "accuracy_mlp"),
)
"""Metrics that the first runs were to be measured by when their snapshots were lost with the machine."""
NATURAL = {
    "same_family": "same script and family",
    "same_script": "same script, other family",
    "disjoint_scripts": "no common script",
}
STRATA = {**NATURAL, "clone": "English and its clone"}


@dataclass(frozen=True)
class Study:
    """The tables of one results folder."""

    rows: pd.DataFrame
    dips: pd.DataFrame
    """Right answers of the seeds by step and sentence key."""
    births: pd.DataFrame
    """How many frozen experts of the seeds were born at a step."""
    clusters: dict[str, int]
    """Concept to the number of those that depend on each other."""
    languages: pd.DataFrame
    """Stratum and distances of every pair."""
    lengths: pd.DataFrame
    """Of every concept, language and half: by how much its sentences are longer than their negatives."""

    @classmethod
    def read(cls, folder: Path) -> Study:
        """The study in `folder`; without any tables there are no rows."""

        def table(name: str) -> pd.DataFrame:
            path = folder / f"{name}.parquet"
            return pd.read_parquet(path) if path.is_file() else pd.DataFrame()

        dips, births = _of_main(table("dips")), _with_again(table("births"), ["run_seed"])
        return cls(table("rows"), dips, births, concept_numbers(folder), table("languages"), table("lengths"))

    @cached_property
    def main(self) -> pd.DataFrame:
        """Rows of the seeds of width 128: of their first runs, and of the second ones what the first lack of `DEAR`."""
        if self.rows.empty:
            return self.rows
        dear = self.rows[(self.rows["part"] == "seeds") | self.rows["metric"].isin(DEAR)]
        return _with_again(dear, ["run_seed", "step", "metric"])

    @cached_property
    def again(self) -> pd.DataFrame:
        """Rows of the seeds that were trained a second time, on another machine."""
        return _of_main(self.rows, "again")

    @cached_property
    def steps_of(self) -> dict[int, list[int]]:
        """Seed to the snapshots at which R was measured."""
        if self.main.empty:
            return {}
        return self.steps_with("rank_transfer")

    def steps_with(self, metric: str) -> dict[int, list[int]]:
        """Seed to the snapshots at which a metric was measured."""
        return steps_by_seed(self.main[self.main["metric"] == metric])

    @property
    def finished(self) -> list[int]:
        """Seeds that were measured from the untrained network to the last step."""
        return [seed for seed, steps in self.steps_of.items() if {0, LAST} <= set(steps)]

    @cached_property
    def steps(self) -> list[int]:
        """Snapshots that all seeds have."""
        return sorted(set.intersection(*map(set, self.steps_of.values())))

    @cached_property
    def all_steps(self) -> list[int]:
        """Snapshots that any seed has."""
        return sorted(set().union(*self.steps_of.values()))

    @cached_property
    def strata(self) -> dict[str, str]:
        """The strata of which there are pairs, with their names."""
        there = set(self.main.loc[self.main["metric"] == "rank_transfer", "condition"])
        return {stratum: label for stratum, label in STRATA.items() if stratum in there}

    def means(self, metric: str, condition: str | None = None, *, k: int | None = None, **where: Any) -> pd.DataFrame:
        """Steps (rows) by seeds of an overall number, missing where a seed has none; `where` names further columns,
        such as `layer`."""
        table = overall(self.main, metric, condition, k=k, **where).pivot(
            index="step", columns="run_seed", values="value"
        )
        return table.reindex(columns=list(self.steps_of))

    def chance(self, metric: str, step: int, **where: Any) -> float | None:
        """The chance level beside a number, mean over seeds."""
        rows = overall(self.main, metric, None, **where)
        found = rows.loc[rows["step"] == step, "chance"].dropna()
        return float(found.mean()) if len(found) else None

    def by_concept(self, metric: str, condition: str | None, step: int) -> pd.DataFrame:
        """Seeds by concepts (R, C), of concepts that all seeds have."""
        rows = self.main[(self.main["metric"] == metric) & (self.main["step"] == step) & self.main["concept"].notna()]
        rows = rows[_equals(rows["condition"], condition)]
        return rows.pivot(index="run_seed", columns="concept", values="value").dropna(axis=1)

    def rises(self, metric: str, condition: str | None, until: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(R, C) at a step (the last common one) minus step 0, and the clusters of the concepts (C,)."""
        end = self.steps[-1] if until is None else until
        first, last = (self.by_concept(metric, condition, step) for step in (0, end))
        change = (last - first).dropna(axis=1)
        return change.to_numpy(), self.clusters_of(change.columns)

    def clusters_of(self, concepts: pd.Index) -> np.ndarray:
        return np.array([self.clusters[concept] for concept in concepts])

    def pairs(self, metric: str, step: int) -> pd.DataFrame:
        """Pairs (language, other_language) by seeds."""
        rows = self.main[(self.main["metric"] == metric) & (self.main["step"] == step)]
        rows = rows[rows["other_language"].notna() & rows["concept"].isna() & rows["k"].isna()]
        return rows.pivot(index=["language", "other_language"], columns="run_seed", values="value")

    @cached_property
    def dip_steps(self) -> dict[int, list[int]]:
        """Seed to the snapshots at which D was measured."""
        if self.dips.empty:
            return {}
        return steps_by_seed(self.dips)

    @cached_property
    def dip_arrays(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Steps, D by seed, step and sentence key (R, T, G), and the middle's accuracy (R, T)."""
        steps = sorted(set.intersection(*map(set, self.dip_steps.values())))
        counts = [
            self.dips[self.dips["step"].isin(steps)].pivot(index=["run_seed", "step"], columns="key", values=name)
            for name in ("embedding", "middle", "last", "total")
        ]
        common = (counts[3].notna() & (counts[3] > 0)).all()  # the same tokens of the same sentences in all runs
        table = np.stack([one.loc[:, common].to_numpy() for one in counts])  # (4, R x T, G)
        table = table.reshape(4, len(self.dip_steps), len(steps), -1)
        return steps, dip_values(*table), table[1].sum(-1) / table[3].sum(-1)


def steps_by_seed(rows: pd.DataFrame) -> dict[int, list[int]]:
    return {int(seed): sorted(set(map(int, own["step"]))) for seed, own in rows.groupby("run_seed")}


def concept_numbers(folder: Path) -> dict[str, int]:
    """Concept to the number of those that depend on each other, as the tables in `folder` have it."""
    path = folder / "concepts.parquet"
    if not path.is_file():
        return {}
    table = pd.read_parquet(path)
    return dict(zip(table["concept"], map(int, table["cluster"]), strict=True))


def _of_main(table: pd.DataFrame, part: str = "seeds") -> pd.DataFrame:
    return table[(table["part"] == part) & (table["width"] == WIDTH)] if len(table) else table


def _with_again(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Rows of the first runs, and those of the runs made again whose `keys` no first run has."""
    first, again = _of_main(table), _of_main(table, "again")
    if not len(again):
        return first
    known = first.set_index(keys).index
    return pd.concat([first, again[~again.set_index(keys).index.isin(known)]])


def overall(
    frame: pd.DataFrame, metric: str, condition: str | None, *, k: int | None = None, **where: Any
) -> pd.DataFrame:
    """Rows of a metric that belong to nothing but `condition`, `k` and what `where` names."""
    rows = frame[frame["metric"] == metric]
    asked = {"condition": condition, "k": k, **where}
    for column in ("condition", "k", "layer", "concept", "language", "other_language"):
        rows = rows[_equals(rows[column], asked.get(column))]
    return rows


def _equals(column: pd.Series, value: object) -> pd.Series:
    return column.isna() if value is None else column == value
