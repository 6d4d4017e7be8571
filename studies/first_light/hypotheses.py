"""The hypotheses of the plan, decided from the study's tables."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.report.capacity.runs import at_loss
from studies.first_light.decisions import Decision, correct, decide_capacity, decide_dip, decide_rise, decide_transfer
from studies.first_light.study import CAPACITY_LAST, Study, overall

QUESTIONS = {
    "H1": "sharing rises over the untrained network (R, no common script)",
    "H1b": "it is not surface (R, English and its clone)",
    "H2": "language identity falls in the middle and stays at the ends (D)",
    "H3": "tighter capacity, more sharing (slope of rise / ceiling over log2 width)",
    "H4": "the neurons carry the concept across (causal transfer, no common script)",
}

CLAIMS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("concept neurons come to be shared between languages (Riemenschneider & Frank 2025)", "H1", {}),
    ("what is shared is more than surface (the same)", "H1b", {"refuted": "open: it may be surface"}),
    ("language identity fades in the middle layers (the same)", "H2", {}),
    ("sharing is compression: the tighter the capacity, the more (the same)", "H3", {}),
    (
        "alignment is stronger in larger models (Inaba et al. 2025)",
        "H3",
        {"supported": "refuted", "refuted": "supported"},
    ),
    ("neurons found in one language carry the concept in others (Riemenschneider & Frank 2025)", "H4", {}),
)
"""What others say, the hypothesis that tests it, and how its outcome reads where that is another."""


def decide(study: Study) -> dict[str, Decision]:
    """Every hypothesis for which all seeds have their numbers, at all snapshots that it reads."""
    found: dict[str, Decision] = {}
    for name, condition in (("H1", "disjoint_scripts"), ("H1b", "clone")):
        rises, clusters = study.rises("rank_transfer", condition)
        if rises.size:
            found[name] = decide_rise(name, rises, clusters)
    seeds = list(study.steps_of)
    candidates = set(study.all_steps)
    probed = [candidates <= set(study.dip_steps.get(seed, ())) for seed in seeds]
    if len(seeds) > 2 and all(probed):  # one seed chooses the step, two or more test it
        found["H2"] = decide_dip(*study.dip_arrays)
    capacity = capacity_values(study)
    runs = capacity.drop_duplicates(["width", "run_seed"])
    if len(runs) > 1 + len(set(runs["run_seed"])):
        found["H3"] = decide_capacity(*capacity_comparison(capacity))
    gains = study.by_concept("causal_transfer", "disjoint_scripts", study.steps[-1])
    own = study.by_concept("causal_own", None, study.steps[-1])
    if gains.size and list(gains.index) == list(own.index) == seeds:
        found["H4"] = decide_transfer(gains.to_numpy(), float(own.to_numpy().mean()), study.clusters_of(gains.columns))
    return correct(found)


def claim_read(name: str, decisions: Mapping[str, Decision], reads: Mapping[str, str]) -> str:
    """The outcome of a hypothesis as what it says of a claim."""
    if name not in decisions:
        return "not measured"
    if name == "H1b" and not ("H1" in decisions and decisions["H1"].outcome == "supported"):
        return "not read, since H1 is not supported"
    one = decisions[name]
    said = reads.get(one.outcome, one.outcome)
    return f"{said}, {one.caveat}" if one.caveat and one.outcome == "supported" else said


def capacity_comparison(table: pd.DataFrame) -> tuple[list[int], list[int], list[float], list[float]]:
    """Widths, seeds, and the value of every run at its end and at the lowest loss that all of them reached."""
    runs = [own.sort_values("step") for _, own in table.groupby(["width", "run_seed"])]
    target = max(float(own["loss"].min()) for own in runs)
    equal = [at_loss(own["loss"].tolist(), own["value"].tolist(), target) for own in runs]
    assert all(value is not None for value in equal)
    return (
        [int(own["width"].iloc[0]) for own in runs],
        [int(own["run_seed"].iloc[0]) for own in runs],
        [float(own["value"].iloc[-1]) for own in runs],
        [float(value) for value in equal if value is not None],
    )


def capacity_values(study: Study) -> pd.DataFrame:
    """width, run_seed, step, loss, value (rise of R without a common script over the split-half ceiling) of the
    capacity runs that are measured to their end, of seeds that have several widths."""
    runs = study.rows[study.rows["part"] == "capacity"]
    found = []
    for (width, seed), own in runs.groupby(["width", "run_seed"]):
        parts = {
            "loss": overall(own, "bits_per_byte", None),
            "level": overall(own, "rank_transfer", "disjoint_scripts"),
            "ceiling": overall(own, "rank_ceiling", None),
        }
        table = pd.concat({name: rows.set_index("step")["value"] for name, rows in parts.items()}, axis=1).dropna()
        if {0, CAPACITY_LAST} <= set(table.index):
            table["value"] = (table["level"] - table.loc[0, "level"]) / table["ceiling"]
            table.loc[0, "value"] = 0.0
            found.append(table.reset_index().assign(width=width, run_seed=seed))
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["width", "run_seed"])
    return table[table.groupby("run_seed")["width"].transform("nunique") > 1]
