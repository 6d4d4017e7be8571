"""How much of the plan is trained and measured, and what a hypothesis that was not decided lacks."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from studies.first_light.hypotheses import capacity_values
from studies.first_light.markdown import Table, numbered
from studies.first_light.study import Study, steps_by_seed


def extent_table(study: Study) -> Table:
    """Which seeds and snapshots there are of everything that was planned."""
    all_steps, again = study.all_steps, study.again
    again = again[again["metric"] == "causal_transfer"] if len(again) else again
    measured = {
        "sharing (R) and held-out loss": study.steps_of,
        "language probe, H2": study.dip_steps,
        "alignment": study.steps_with("cka_debiased"),
        "causal transfer, H4": study.steps_with("causal_transfer"),
        **({"of these from a seed trained again": steps_by_seed(again)} if len(again) else {}),
        "concept directions": study.steps_with("direction_transfer"),
        "the last step's experts, followed": {
            int(seed): all_steps for seed in sorted(set(study.births["run_seed"]) if len(study.births) else ())
        },
    }
    rows = []
    for what, steps_of in measured.items():
        same: dict[tuple[int, ...], list[int]] = {}
        for seed, steps in steps_of.items():
            same.setdefault(tuple(steps), []).append(seed)
        said = "; ".join(f"{numbered('seed', seeds)}: {_said(steps, all_steps)}" for steps, seeds in same.items())
        rows.append([what, said or "none"])
    clones = study.rows[study.rows["part"] == "clone"]
    rows.append(["capacity runs, H3", _runs_of(capacity_values(study))])
    rows.append(["English with its clone alone", _runs_of(clones[clones["metric"] == "rank_transfer"])])
    note = f"Snapshots: {numbered('step', all_steps)}."
    return Table("What there is", note, ["planned", "trained and measured"], rows)


def lacking(study: Study, name: str) -> str:
    """Why a hypothesis was not decided."""
    if name == "H3":
        return "it needs several widths of each seed, and more runs than seeds + 1"
    if name in ("H1", "H1b"):
        return "no R of these pairs"
    what, there, wanted = "language probe", study.dip_steps, study.all_steps
    if name == "H4":
        what, there, wanted = "causal transfer", study.steps_with("causal_own"), study.steps[-1:]
    for seed in study.steps_of:
        gone = [step for step in wanted if step not in there.get(seed, ())]
        if gone:
            return f"no {what} of seed {seed} at {len(gone)} of its steps, the last of them {gone[-1]:,}"
    return f"{len(study.steps_of)} seeds are too few"


def _said(steps: Sequence[int], all_steps: Sequence[int]) -> str:
    if list(steps) == list(all_steps):
        return f"all {len(steps)} snapshots"
    gone = [step for step in all_steps if step not in steps]
    return numbered("step", steps) if len(steps) <= len(gone) else f"all but {numbered('step', gone)}"


def _runs_of(rows: pd.DataFrame) -> str:
    """Seeds of every width, by the number of snapshots that they were measured at."""
    found: dict[tuple[int, int], list[int]] = {}
    for (width, seed), own in rows.groupby(["width", "run_seed"]):
        found.setdefault((int(width), own["step"].nunique()), []).append(int(seed))
    return (
        "; ".join(f"d{width}: {numbered('seed', seeds)} ({count} snapshots)" for (width, count), seeds in found.items())
        or "none"
    )
