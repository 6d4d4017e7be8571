"""What a run amounts to, in a few lines: the closing table of a run and the verdict on its overlap.

A rise of shared concept neurons over training counts only above the level of the untrained network on the same
sentences (METHOD: an untrained network is far above chance), so the verdict compares the last snapshot with step 0,
concept by concept, and says so when nothing is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.base import class_name
from analysis.report.figures import select
from analysis.report.headlines import layer_label
from analysis.report.run import RunRecord
from analysis.report.tables import Table
from analysis.statistics import bootstrap_interval


@dataclass(frozen=True)
class Change:
    """A measure at the last snapshot against the untrained network, paired over concepts."""

    first: float
    last: float
    step: int
    difference: float
    low: float
    high: float
    num_concepts: int

    @property
    def verdict(self) -> str:
        if self.low > 0:
            return "above the untrained network"
        if self.high < 0:
            return "below the untrained network"
        return "no difference from the untrained network is shown"


def analyses_of_class(record: RunRecord, *classes: str) -> list[str]:
    """Names under which analyses of these classes (`ConceptOverlap`, ...) stored results in the run."""
    found = {analysis for _, analysis, stamp in record.stamps() if class_name(stamp["settings"]) in classes}
    return sorted(found)


def change_since_start(record: RunRecord, analysis: str, metric: str, seed: int = 0) -> Change | None:
    """Paired comparison of the last snapshot with step 0 over the per-concept rows of a metric; None without both."""
    rows = select(record.frame, analysis, metric, by=("concept",))
    if rows.empty or 0 not in set(rows["step"]) or rows["step"].nunique() < 2:
        return None
    table = rows.pivot_table(index="concept", columns="step", values="value")
    step = int(max(table.columns))
    paired = table[[0, step]].dropna()
    if len(paired) < 2:
        return None
    difference = (paired[step] - paired[0]).to_numpy()
    low, high = bootstrap_interval(difference, seed=seed)
    return Change(
        first=float(paired[0].mean()),
        last=float(paired[step].mean()),
        step=step,
        difference=float(difference.mean()),
        low=float(low),
        high=float(high),
        num_concepts=len(paired),
    )


def closing_tables(record: RunRecord) -> list[Table]:
    """The tables that end `make demo`: loss per language, language probe, overlap, cost of the analyses."""
    tables = [
        table
        for table in (_loss_table(record), _probe_table(record), _overlap_table(record), _cost_table(record))
        if table is not None
    ]
    if not tables:
        raise ValueError(f"{record.folder}: there is nothing to summarise yet")
    return tables


def _loss_table(record: RunRecord) -> Table | None:
    rows = []
    step = 0
    for name in analyses_of_class(record, "HeldOutLoss"):
        bits = select(record.frame, name, "bits_per_byte", by=("language",))
        step = int(bits["step"].max())
        for row in bits[bits["step"] == step].sort_values("language").itertuples():
            difference = row.value - row.chance
            rows.append((str(row.language), _number(row.value), _number(row.chance), f"{difference:+.4f}"))
    if not rows:
        return None
    return Table(
        title=f"Bits per byte on held-out text, step {step}",
        header=("language", "model", "unigram", "difference"),
        rows=tuple(rows),
        note="Unigram: a model of token frequencies, fitted on the training split.",
    )


def _probe_table(record: RunRecord) -> Table | None:
    rows = []
    for name in analyses_of_class(record, "LanguageProbe"):
        for step in _first_and_last(record, name):
            accuracy = select(record.frame, name, "accuracy", by=("layer",))
            accuracy = accuracy[accuracy["step"] == step]
            if accuracy.empty:
                continue
            best, worst = accuracy.loc[accuracy["value"].idxmax()], accuracy.loc[accuracy["value"].idxmin()]
            baselines = [
                _number(_mean_at(record, name, f"accuracy_{kind}", step))
                for kind in ("majority", "shuffled", "token_identity")
            ]
            rows.append(
                (
                    f"step {step}",
                    f"{_number(best['value'])} ({layer_label(int(best['layer']))})",
                    f"{_number(worst['value'])} ({layer_label(int(worst['layer']))})",
                    *baselines,
                )
            )
    if not rows:
        return None
    return Table(
        title="Language probe (accuracy by layer)",
        header=("", "best layer", "worst layer", "majority", "shuffled labels", "token identity"),
        rows=tuple(rows),
    )


def _overlap_table(record: RunRecord) -> Table | None:
    rows = []
    note = ""
    for name in analyses_of_class(record, "ConceptOverlap"):
        for step in _first_and_last(record, name):
            overall = select(record.frame, name, "shared")
            overall = overall[overall["step"] == step]
            if overall.empty:
                continue
            row = overall.iloc[0]
            rows.append((f"{name}, step {step}", _with_interval(row), _number(row["chance"])))
        change = change_since_start(record, name, "shared")
        if change is not None:
            rows.append(
                (
                    f"{name}, difference",
                    f"{change.difference:+.4f} [{change.low:+.4f}, {change.high:+.4f}]",
                    "",
                )
            )
            note = f"{change.verdict[0].upper()}{change.verdict[1:]} (paired over {change.num_concepts} concepts)."
    if not rows:
        return None
    return Table(
        title="Concept neurons shared between languages (share of the top K, mean over pairs)",
        header=("", "shared [95 % interval]", "chance"),
        rows=tuple(rows),
        note=note,
    )


def _cost_table(record: RunRecord) -> Table | None:
    history = record.history
    shares = history[history["key"] == "analysis_cost/share"] if len(history) else history
    seconds: dict[str, list[float]] = {}
    for _, analysis, stamp in record.stamps():
        seconds.setdefault(analysis, []).append(float(stamp["seconds"]))
    if not seconds:
        return None
    rows = [
        (name, f"{np.median(values):.1f} s", f"{sum(values):.0f} s", str(len(values)))
        for name, values in sorted(seconds.items())
    ]
    note = "" if shares.empty else f"Share of the training's wall time: {100 * shares['value'].iloc[-1]:.1f} %."
    return Table(
        title="Cost of the analyses",
        header=("analysis", "a snapshot", "in all", "snapshots"),
        rows=tuple(rows),
        note=note,
    )


def _first_and_last(record: RunRecord, analysis: str) -> Sequence[int]:
    steps = sorted(record.frame[record.frame["analysis"] == analysis]["step"].unique().tolist())
    return list(dict.fromkeys([steps[0], steps[-1]])) if steps else []


def _mean_at(record: RunRecord, analysis: str, metric: str, step: int) -> float | None:
    rows = record.frame
    rows = rows[(rows["analysis"] == analysis) & (rows["metric"] == metric) & (rows["step"] == step)]
    return float(rows["value"].mean()) if len(rows) else None


def _with_interval(row: pd.Series) -> str:
    if pd.isna(row["low"]):
        return _number(row["value"])
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"


def _number(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.4f}"
