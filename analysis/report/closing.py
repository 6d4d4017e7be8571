"""The tables that end a run: loss per language, language probe, sharing against random networks, cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.report.changes import DECISIVE, PAPER, changes_by_stratum
from analysis.report.figures import select
from analysis.report.headlines import layer_label
from analysis.report.run import RunRecord, analyses_of_class
from analysis.report.tables import Table, number


def closing_tables(record: RunRecord) -> list[Table]:
    """Loss per language, language probe, sharing, cost of the analyses: what of it there is."""
    tables = (_loss_table(record), _probe_table(record), _overlap_table(record), _cost_table(record))
    return [table for table in tables if table is not None]


def _loss_table(record: RunRecord) -> Table | None:
    rows = []
    step = 0
    for name in analyses_of_class(record, "HeldOutLoss"):
        bits = record.usable(select(record.frame, name, "bits_per_byte", by=("language",)))
        if bits.empty:
            continue
        step = int(bits["step"].max())
        for row in bits[bits["step"] == step].sort_values("language").itertuples():
            difference = row.value - row.chance
            rows.append((str(row.language), number(row.value), number(row.chance), f"{difference:+.4f}"))
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
            ends = (accuracy.loc[accuracy["value"].idxmax()], accuracy.loc[accuracy["value"].idxmin()])
            cells = [f"{number(end['value'])} ({layer_label(int(end['layer']))})" for end in ends]
            for kind in ("majority", "shuffled", "token_identity"):
                cells.append(number(_mean_at(record, name, f"accuracy_{kind}", step)))
            rows.append((f"step {step}", *cells))
    if not rows:
        return None
    return Table(
        title="Language probe (accuracy by layer)",
        header=("", "best layer", "worst layer", "majority", "shuffled labels", "token identity"),
        rows=tuple(rows),
    )


def _overlap_table(record: RunRecord) -> Table | None:
    """One line a stratum of language pairs for the statistic that decides, one for the study's number beside it."""
    rows = []
    networks = 1
    for name in analyses_of_class(record, "ConceptOverlap"):
        decisive = changes_by_stratum(record, name, DECISIVE)
        for change in (*decisive, *changes_by_stratum(record, name, PAPER)[:1]):
            networks = change.num_networks
            rows.append((f"{name}: {change.metric}, {change.pairs}", *change.cells, change.in_a_word))
    if not rows:
        return None
    return Table(
        title="Concept neurons across languages, last usable snapshot, paired over concepts",
        header=("", "untrained" if networks == 1 else f"{networks} random", "last", "difference [95 %]", ""),
        rows=tuple(rows),
        note="Visible from: the smallest difference seen with 80 % power. rank_transfer decides; shared is the number "
        "of the study, which likeness of translations alone raises.",
    )


def _cost_table(record: RunRecord) -> Table | None:
    history = record.history
    shares = history[history["key"] == "analysis_cost/share"] if len(history) else history
    seconds: dict[str, list[float]] = {}
    for _, analysis, stamp in record.stamps:
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
    measured = set(record.frame[record.frame["analysis"] == analysis]["step"])
    steps = [step for step in record.usable_steps if step in measured]
    return list(dict.fromkeys([steps[0], steps[-1]])) if steps else []


def _mean_at(record: RunRecord, analysis: str, metric: str, step: int) -> float | None:
    rows = record.frame
    rows = rows[(rows["analysis"] == analysis) & (rows["metric"] == metric) & (rows["step"] == step)]
    return float(rows["value"].mean()) if len(rows) else None
