"""The tables of docs/first_light.md on sharing between languages, and the order of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from analysis.onsets import band_edges, find_onset, mean_onset, onset_difference
from analysis.permutation import regress_on_distances
from analysis.report.tables import p_value
from analysis.statistics import benjamini_hochberg, mean_contrast, two_way_interval
from studies.first_light.extent import extent_table, lacking
from studies.first_light.hypotheses import CLAIMS, QUESTIONS, capacity_values, claim_read, decide
from studies.first_light.lengths import length_table
from studies.first_light.markdown import Table, interval, mean_at, signs, steps_of, when
from studies.first_light.secondary import (
    again_table,
    alignment_table,
    birth_table,
    capacity_table,
    clone_table,
    identity_table,
    transfer_table,
)
from studies.first_light.study import NATURAL, STRATA, Study

ALL = "all natural pairs"
PAIRS = {**NATURAL, "with_clone": "the clone with all but English: no token in common"}
"""Strata of the tables of expert sets."""
WITH_CLONE = ("transfer_gain", "normalized")
"""Measures that `ConceptOverlap` averages over all pairs, those of the clone among them."""
NULLS = {
    "shared_shuffled": "shuffled labels",
    "shared_mismatched": "other concepts",
    "shared_surface": "bag of tokens",
}


def decision_table(study: Study) -> Table:
    rows = []
    decisions = decide(study)
    for name, question in QUESTIONS.items():
        if name not in decisions:
            rows.append([f"{name}: {question}", "not measured", "", "", "", "", lacking(study, name)])
            continue
        one = decisions[name]
        p = "" if one.p_holm is None else p_value(one.p_holm)
        effect, visible = interval(one.contrast), "" if np.isnan(one.visible) else f"{one.visible:.4f}"
        by_seed = " ".join(f"{value:+.4f}" for value in one.by_seed)
        why = f"{one.why}; {one.caveat}" if one.caveat and one.caveat not in one.why else one.why
        rows.append([f"{name}: {question}", f"**{one.outcome}**", effect, p, by_seed, visible, why])
    return Table(
        "Decisions",
        "Over seeds and concepts (H2: over seeds 2 to 5 and sentence keys; seed 1, first in its row, chose the step), "
        "95 % intervals. p after Holm's correction over H1 to H4: against no effect, of H2 against a fall of 0.02, of "
        "H3 the larger of both comparisons (the effect beside it is that at equal tokens). *Visible*: the smallest "
        "effect that would have been seen with a power of 80 %, before that correction.",
        ["hypothesis", "decision", "effect", "p (Holm)", "by seed", "visible", "why"],
        rows,
    )


def claims_table(study: Study) -> Table:
    decisions = decide(study)
    rows = []
    for claim, name, reads in CLAIMS:
        effect = interval(decisions[name].contrast) if name in decisions else ""
        rows.append([claim, name, effect, claim_read(name, decisions, reads)])
    note = "For this model and text: one size of corpus, models of at most 256 dimensions, concepts that are words."
    return Table("The claims of others", note, ["claim", "tested by", "effect", "here"], rows)


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
            STRATA.get(condition or "", ALL),
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


def early_table(study: Study) -> Table:
    """Is there a dip before the rise?"""
    steps = [step for step in (64, 128, 256) if step in study.steps]
    rows = []
    for condition, label in study.strata.items():
        found = [study.rises("rank_transfer", condition, step) for step in steps]
        rows.append([label, *(interval(two_way_interval(*one)) for one in found)])
    return Table(
        "The first steps",
        "R minus that of the untrained network of the same seed, over seeds and concepts.",
        ["pairs", *(f"step {step}" for step in steps)],
        rows,
    )


def paper_table(study: Study) -> Table:
    """The paper's number, with what it is without the concept beside it."""
    first, last = study.steps[0], study.steps[-1]
    rows = []
    for condition in (None, *NATURAL):
        cells = _rise_cells(study, "shared", condition)
        if cells:
            nulls = [study.means(metric, condition) for metric in NULLS]
            rows.append([PAIRS.get(condition or "", ALL), *cells, *(mean_at(null, last, 4) for null in nulls)])
    return Table(
        "The paper's measure beside its nulls",
        "Experts that two languages share on the same sentences, 3 % of the units; intervals over seeds alone "
        f"(Student's t). The last three columns: the same without the concept, at step {last:,}; a bag of tokens reads "
        "no network.",
        ["pairs", f"step {first}", f"step {last:,}", "rise", "seeds", *NULLS.values()],
        rows,
    )


def depth_table(study: Study) -> Table:
    """Expert sets of disjoint halves by K, and what else is taken on disjoint halves."""
    depths = sorted(set(study.main.loc[study.main["metric"] == "heldout_shared", "k"].dropna().astype(int)))
    halves, pairs = (None, "disjoint_scripts"), (None, *NATURAL)
    named: list[tuple[str, str, int | None, tuple[str | None, ...]]] = [
        ("heldout_shared", f"shared minus other concepts, K = {k}", k, halves) for k in depths
    ]
    named += [
        ("transfer_gain", "AP in the other language above other concepts", None, pairs),
        ("normalized", "R over its split-half ceiling", None, pairs),
        ("rank_transfer", "R (not planned)", None, ("with_clone",)),
    ]
    first, last = study.steps[0], study.steps[-1]
    rows = []
    for metric, label, k, conditions in named:
        everything = "all pairs, the clone's too" if metric in WITH_CLONE else ALL
        for condition in conditions:
            cells = _rise_cells(study, metric, condition, k)
            if cells:
                rows.append([label, PAIRS.get(condition or "", everything), *cells])
    return Table(
        "Experts on disjoint halves",
        "By number of experts K (0.3, 1, 3 and 10 % of the units), all others at 3 %; intervals over seeds alone.",
        ["measure", "pairs", f"step {first}", f"step {last:,}", "rise", "seeds"],
        rows,
    )


def _rise_cells(study: Study, metric: str, condition: str | None, k: int | None = None) -> list[str]:
    """Levels at the first and the last step, the rise over seeds, and its signs; nothing below two seeds."""
    table, steps = study.means(metric, condition, k=k), (study.steps[0], study.steps[-1])
    if not set(steps) <= set(table.index):
        return []
    change = table.loc[steps[1]] - table.loc[steps[0]]
    if change.notna().sum() < 2:
        return []
    rise = interval(mean_contrast(change.dropna().to_numpy()))
    return [*(mean_at(table, step, 4) for step in steps), rise, signs(change)]


def kinship_table(study: Study) -> Table:
    """Does the rise of a pair follow script, family or vocabulary?"""
    change = study.pairs("rank_transfer", study.steps[-1]) - study.pairs("rank_transfer", 0)
    known = study.languages.set_index(["language", "other_language"])
    known = known.loc[known.index.intersection(change.index)]
    keys, languages = known.index.tolist(), sorted({code for pair in known.index for code in pair})
    names = ("script", "family", "vocabulary")
    distances = {name: known[name].to_dict() for name in names}
    rise = change.mean(axis=1).loc[keys]
    found = regress_on_distances(languages, rise.to_dict(), distances)
    by_seed = [
        regress_on_distances(languages, {pair: float(change[seed][pair]) for pair in keys}, distances, permutations=1)
        for seed in change.columns
    ]
    corrected = benjamini_hochberg(np.array([one.p for one in found.values()]))
    alone = np.corrcoef(np.stack([rise, *(known[name] for name in names)]))  # the rise, then the distances
    rows = [
        [
            name,
            f"{alone[0, place + 1]:+.2f}",
            f"{one.coefficient:+.4f}",
            f"{one.correlation:+.2f}",
            p_value(float(corrected[place])),
            signs([own[name].coefficient for own in by_seed]),
        ]
        for place, (name, one) in enumerate(found.items())
    ]
    return Table(
        "What the rise of a pair follows",
        f"The rise of R of {len(keys)} pairs (mean over seeds) by three distances: the correlation with each alone, "
        "and the regression on all at once, with p by permutation of the languages (corrected after Benjamini and "
        "Hochberg). Script: 0 if one is common; family: 0 the same branch, 0.5 the same family; vocabulary: "
        f"Jensen-Shannon distance of token frequencies. Script and vocabulary go together (r {alone[1, 3]:+.2f}): what "
        "the regression gives of one is what it adds to the other, over a range that few pairs have, and not how the "
        "rise differs between pairs with and without a common script.",
        ["distance", "r alone", "rise per unit, others held", "partial r", "p (BH)", "seeds"],
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


ANSWERS: Sequence[Callable[[Study], Table]] = (decision_table, claims_table, extent_table)
"""Before the figures."""
DETAILS: Sequence[Callable[[Study], Table]] = (
    sharing_table,
    early_table,
    length_table,
    paper_table,
    depth_table,
    kinship_table,
    onset_table,
    identity_table,
    transfer_table,
    birth_table,
    alignment_table,
    capacity_table,
    clone_table,
    again_table,
)


def is_measured(study: Study, make: Callable[[Study], Table]) -> bool:
    """Whether the study has what a table is made of."""
    metrics = set(study.main["metric"])
    needs: dict[Callable[[Study], Table], bool] = {
        early_table: bool({64, 128, 256} & set(study.steps)),
        identity_table: len(study.dip_steps) > 1,
        birth_table: len(study.births) > 0,
        alignment_table: "cka_debiased" in metrics,
        kinship_table: len(study.languages) > 0,
        length_table: len(study.lengths) > 0,
        capacity_table: len(capacity_values(study)) > 0,
        clone_table: "clone" in set(study.rows["part"]),
        again_table: len(study.again) > 0,
    }
    return needs.get(make, True)
