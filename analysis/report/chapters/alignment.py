"""Alignment of translations: the verdict; its figures follow from the shape of its rows."""

from __future__ import annotations

from analysis.report.figures import select
from analysis.report.run import RunRecord
from analysis.report.tables import with_interval

MEASURES = {
    "mutual_knn": "share of nearest neighbours that a sentence and its translation have in common",
    "cka_debiased": "debiased CKA of translations",
    "mexa": "share of sentences whose translation is nearest both ways",
}
"""The first one of these that was measured gives the sentence."""


def verdicts(record: RunRecord, name: str) -> list[str]:
    """The overall similarity of translations at the last usable snapshot, at step 0, and of permuted sentences."""
    for metric, what in MEASURES.items():
        rows = record.usable(select(record.frame, name, metric))
        if rows.empty:
            continue
        first, last = rows.iloc[0], rows.iloc[-1]
        chance = "" if last.isna()["chance"] else f"; {last['chance']:.3f} for permuted sentences"
        start = f"; {first['value']:.3f} in the untrained network" if first["step"] == 0 and len(rows) > 1 else ""
        return [
            f"Alignment: {what}, mean over pairs and layers: {with_interval(last['value'], last['low'], last['high'])} "
            f"at step {int(last['step'])}{start}{chance}."
        ]
    return []
