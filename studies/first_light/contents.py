"""The tables of docs/first_light.md on sharing between languages, and the order of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from analysis.onsets import band_edges, find_onset, mean_onset, onset_difference
from analysis.permutation import regress_on_distances
from analysis.statistics import benjamini_hochberg, mean_contrast, two_way_interval
from studies.first_light.hypotheses import CLAIMS, QUESTIONS, capacity_values, decide
from studies.first_light.lengths import length_table
from studies.first_light.markdown import Table, interval, p_value, signs, steps_of, when
from studies.first_light.secondary import (
    alignment_table,
    birth_table,
    capacity_table,
    clone_table,
    identity_table,
    transfer_table,
)
from studies.first_light.study import NATURAL, STRATA, Study

PAIRS = {**NATURAL, "with_clone": "the clone with all but English: no token in common"}
"""Strata of the table of expert sets."""
WITH_CLONE = ("transfer_gain", "normalized")
"""Measures that `ConceptOverlap` averages over all pairs, those of the clone among them."""


def decision_table(study: Study) -> Table:
    rows = []
    decisions = decide(study)
    for name, question in QUESTIONS.items():
        if name not in decisions:
            rows.append([f"{name}: {question}", "not measured", "", "", "", "", "its numbers are not complete"])
            continue
        one = decisions[name]
        p = "" if one.p_holm is None else p_value(one.p_holm)
        effect, visible = interval(one.contrast), f"{one.visible:.4f}"
        rows.append([f"{name}: {question}", f"**{one.outcome}**", effect, p, signs(one.by_seed), visible, one.why])
    return Table(
        "Decisions",
        "Over seeds and concepts (H2: over seeds 2 to 5 and sentence keys), 95 % intervals; p after Holm's correction "
        "over H1 to H4. *Visible*: the smallest effect that would have been seen with a power of 80 %.",
        ["hypothesis", "decision", "effect", "p (Holm)", "seeds", "visible", "why"],
        rows,
    )


def claims_table(study: Study) -> Table:
    decisions = decide(study)
    rows = []
    for claim, name, reads in CLAIMS:
        outcome = decisions[name].outcome if name in decisions else "not measured"
        rows.append([claim, name, reads.get(outcome, outcome)])
    note = "For this model and text: one size of corpus, models of at most 256 dimensions, concepts that are words."
    return Table("The claims of others", note, ["claim", "tested by", "here"], rows)


def sharing_table(study: Study) -> Table:
    first, last = study.steps[0], study.steps[-1]
    rows, contrasts = [], []
    for condition in (None, *STRATA):
        rises, clusters = study.rises("rank_transfer", condition)
        if not rises.size:
            continue
        contrast = two_way_interval(rises, clusters)
        contrasts.append(contrast)
        level = study.means("rank_transfer", condition)
        label, means = (
            STRATA.get(condition or "", "all natural pairs"),
            (level.loc[first].mean(), level.loc[last].mean()),
        )
        levels = [f"{mean:.4f}" for mean in means]
        rows.append([label, *levels, interval(contrast), "", signs(rises.mean(1)), f"{contrast.visible:.4f}"])
    for row, p in zip(rows, benjamini_hochberg(np.array([contrast.p for contrast in contrasts])), strict=True):
        row[4] = p_value(float(p))
    return Table(
        "Agreement of rankings between languages (R) by stratum",
        "R of the untrained networks and at the last step, and the rise over seeds and concepts.",
        ["pairs", f"step {first}", f"step {last:,}", "rise", "p (BH)", "seeds", "visible"],
        rows,
    )


def depth_table(study: Study) -> Table:
    """Expert sets of disjoint halves by K, and the paper's number beside its nulls."""
    rows = []
    depths = sorted(set(study.main.loc[study.main["metric"] == "heldout_shared", "k"].dropna().astype(int)))
    halves, pairs = (None, "disjoint_scripts"), (None, *NATURAL)
    named: list[tuple[str, str, int | None, tuple[str | None, ...]]] = [
        ("heldout_shared", f"halves minus other concepts, K = {k}", k, halves) for k in depths
    ]
    named += [
        ("shared", "shared, same sentences (the paper's)", None, pairs),
        ("shared_shuffled", "the same by shuffled labels", None, pairs),
        ("shared_mismatched", "the same between other concepts", None, pairs),
        ("shared_surface", "the same of a bag of tokens", None, pairs),
        ("transfer_gain", "AP in the other language above other concepts", None, pairs),
        ("normalized", "R over its split-half ceiling", None, pairs),
        ("rank_transfer", "R (not planned)", None, ("with_clone",)),
    ]
    last = study.steps[-1]
    for metric, label, k, conditions in named:
        everything = "all pairs, the clone's too" if metric in WITH_CLONE else "all natural pairs"
        for condition in conditions:
            table = study.means(metric, condition, k=k)
            if not {0, last} <= set(table.index) or len(change := (table.loc[last] - table.loc[0]).dropna()) < 2:
                continue
            rise = interval(mean_contrast(change.to_numpy())) if change.any() else "none: reads no network"
            levels = (table.loc[0].mean(), table.loc[last].mean())
            shown = PAIRS.get(condition or "", everything)
            rows.append([label, shown, *(f"{level:.4f}" for level in levels), rise, signs(change)])
    return Table(
        "Expert sets",
        "Halves by number of experts K (0.3, 1, 3 and 10 % of the units), all others at 3 %; intervals over seeds "
        "alone (Student's t).",
        ["measure", "pairs", "step 0", f"step {last:,}", "rise", "seeds"],
        rows,
    )


def kinship_table(study: Study) -> Table:
    """Does the rise of a pair follow script, family or vocabulary?"""
    change = study.pairs("rank_transfer", study.steps[-1]) - study.pairs("rank_transfer", 0)
    known = study.languages.set_index(["language", "other_language"])
    known = known.loc[known.index.intersection(change.index)]
    keys, languages = known.index.tolist(), sorted({code for pair in known.index for code in pair})
    names = ("script", "family", "vocabulary")
    distances = {name: known[name].to_dict() for name in names}
    found = regress_on_distances(languages, {pair: float(change.mean(axis=1)[pair]) for pair in keys}, distances)
    by_seed = [
        regress_on_distances(languages, {pair: float(change[seed][pair]) for pair in keys}, distances, permutations=1)
        for seed in change.columns
    ]
    rows = [
        [
            name,
            f"{one.coefficient:+.4f}",
            f"{one.correlation:+.2f}",
            p_value(one.p),
            signs([own[name].coefficient for own in by_seed]),
        ]
        for name, one in found.items()
    ]
    return Table(
        "What the rise of a pair follows",
        f"Regression of the rise of R of {len(keys)} pairs (mean over seeds) on three distances at once; p by "
        "permutation of the languages. Script: 0 if one is common; family: 0 the same branch, 0.5 the same family; "
        "vocabulary: Jensen-Shannon distance of token frequencies.",
        ["distance", "rise per unit", "partial r", "p", "seeds"],
        rows,
    )


def onset_table(study: Study) -> Table:
    """When R leaves the band of the untrained networks."""
    found, rows = {}, []
    for condition, label in study.strata.items():
        table = study.means("rank_transfer", condition).loc[study.steps]
        edge = band_edges(table.loc[0].tolist())[1]
        found[condition] = [find_onset(study.steps, table[seed].tolist(), edge) for seed in table]
        mean = mean_onset(found[condition])
        never = sum(one.outside is None for one in found[condition])
        rows.append([label, f"{edge:.4f}", ", ".join(when(one.inside, one.outside) for one in found[condition])])
        rows[-1].append(f"{never} of {len(table.columns)} never" if mean is None and never else steps_of(mean))
    for one, other in (("same_family", "disjoint_scripts"), ("same_family", "clone")):
        if one in found and other in found:
            later = onset_difference(found[one], found[other])
            said = "only bounded" if later is None else f"{interval(later, 1)} octaves"
            rows.append([f"{STRATA[other]}, later than {STRATA[one]}", "", "", said])
    return Table(
        "Onsets of R",
        "Where R rises above the band of the untrained networks for good: between which snapshots, by seed, and the "
        "step (mean over seeds in octaves).",
        ["pairs", "edge of the band", "by seed", "step"],
        rows,
    )


TABLES: Sequence[Callable[[Study], Table]] = (
    decision_table,
    claims_table,
    sharing_table,
    length_table,
    depth_table,
    kinship_table,
    onset_table,
    identity_table,
    transfer_table,
    birth_table,
    alignment_table,
    capacity_table,
    clone_table,
)


def is_measured(study: Study, make: Callable[[Study], Table]) -> bool:
    """Whether the study has what a table is made of."""
    metrics = set(study.main["metric"])
    needs: dict[Callable[[Study], Table], bool] = {
        identity_table: len(study.dips) > 0,
        birth_table: len(study.births) > 0,
        transfer_table: "causal_transfer" in metrics,
        alignment_table: "cka_debiased" in metrics,
        kinship_table: len(study.languages) > 0,
        length_table: len(study.lengths) > 0,
        capacity_table: len(capacity_values(study)) > 0,
        clone_table: "clone" in set(study.rows["part"]),
    }
    return needs.get(make, True)
