"""Held-out loss: the verdict, and the figures of its rows."""

from __future__ import annotations

import numpy as np

from analysis.report.figures import select
from analysis.report.run import RunRecord
from analysis.report.tables import with_interval
from analysis.statistics import paired_contrast


def verdicts(record: RunRecord, name: str) -> list[str]:
    """The loss of the last usable snapshot against a model that knows token frequencies only, paired over languages."""
    rows = record.usable(select(record.frame, name, "bits_per_byte", by=("language",)))
    if rows.empty:
        return []
    last = rows[rows["step"] == rows["step"].max()]
    said = (
        f"Loss: {last['value'].mean():.3f} bits per byte on held-out text at step {int(last['step'].iloc[0])}, mean "
        f"over {len(last)} languages"
    )
    differences = (last["value"] - last["chance"]).dropna().to_numpy(float)
    if len(differences) < 2:
        return [said + "."]
    contrast = paired_contrast(differences)
    share = int(np.sum(differences < 0))
    return [
        f"{said}; {with_interval(contrast.difference, contrast.low, contrast.high, '+.3f')} against token frequencies "
        f"alone, below them in {share} of {len(differences)} languages."
    ]
