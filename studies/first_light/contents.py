"""The tables of docs/first_light.md, each a function of the study's numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis.onsets import band_edges, find_onset, mean_onset, onset_difference
from analysis.permutation import regress_on_distances
from analysis.report.changes import smallest_visible
from analysis.statistics import benjamini_hochberg, mean_contrast, two_way_interval
from studies.first_light.hypotheses import QUESTIONS, capacity_comparison, capacity_values, decide
from studies.first_light.markdown import Table, interval, mean_at, p_value, signs, steps_of, when
from studies.first_light.study import NATURAL, STRATA, Study, overall


def decision_table(study: Study) -> Table:
    rows = []
    decisions = decide(study)
    for name, question in QUESTIONS.items():
        if name not in decisions:
            rows.append([f"{name}: {question}", "not measured", "", "", "", "", ""])
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
        visible = smallest_visible((contrast.high - contrast.low) / 2, rises.shape[1] - 1)
        label, means = (
            STRATA.get(condition or "", "all natural pairs"),
            (level.loc[first].mean(), level.loc[last].mean()),
        )
        levels = [f"{mean:.4f}" for mean in means]
        rows.append([label, *levels, interval(contrast), "", signs(rises.mean(1)), f"{visible:.4f}"])
    for row, p in zip(rows, benjamini_hochberg(np.array([contrast.p for contrast in contrasts])), strict=True):
        row[4] = p_value(float(p))
    return Table(
        "Agreement of rankings between languages (R) by stratum",
        "R of the untrained networks and at the last step, and the rise over seeds and concepts.",
        ["pairs", f"step {first}", f"step {last}", "rise", "p (BH)", "seeds", "visible"],
        rows,
    )


def depth_table(study: Study) -> Table:
    """Expert sets of disjoint halves by K, and the paper's number beside its nulls."""
    rows = []
    depths = sorted(set(study.main.loc[study.main["metric"] == "heldout_shared", "k"].dropna().astype(int)))
    named = [("heldout_shared", f"halves minus other concepts, K = {k}", k) for k in depths]
    named += [
        ("shared", "shared, same sentences (the paper's)", None),
        ("shared_shuffled", "the same by shuffled labels", None),
        ("shared_mismatched", "the same between other concepts", None),
        ("shared_surface", "the same of a bag of tokens", None),
        ("transfer_gain", "AP in the other language above other concepts", None),
        ("normalized", "R over its split-half ceiling", None),
    ]
    last = study.steps[-1]
    for metric, label, k in named:
        for condition in (None, *NATURAL):
            table = study.means(metric, condition, k=k)
            if not {0, last} <= set(table.index) or len(change := (table.loc[last] - table.loc[0]).dropna()) < 2:
                continue
            rise = interval(mean_contrast(change.to_numpy()))
            pairs, levels = (
                NATURAL.get(condition or "", "all natural pairs"),
                (table.loc[0].mean(), table.loc[last].mean()),
            )
            rows.append([label, pairs, *(f"{level:.4f}" for level in levels), rise, signs(change)])
    return Table(
        "Expert sets",
        "By number of experts K; intervals over seeds alone (Student's t).",
        ["measure", "pairs", "step 0", f"step {last}", "rise", "seeds"],
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
    for condition, label in STRATA.items():
        table = study.means("rank_transfer", condition).loc[study.steps]
        if table.empty or table.shape[1] < 2:
            continue
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


def identity_table(study: Study) -> Table:
    """Language identity along depth and training."""
    steps, dips, middle = study.dip_arrays
    chosen = steps[int(dips[0].mean(-1).argmax())]
    ends = {layer: study.means("accuracy_shared", layer=layer) for layer in (-1, 7)}
    rows = []
    for place, step in enumerate(steps):
        levels = mean_at(ends[-1], step), f"{middle[:, place].mean():.3f}", mean_at(ends[7], step)
        rows.append([str(step), *levels, interval(two_way_interval(dips[:, place]), 3)])
    return Table(
        "Language identity on shared tokens",
        f"Accuracy of the linear probe. D: the middle minus the larger of both ends, over seeds and keys. Seed 1 has "
        f"its largest D at step {chosen}.",
        ["step", "embedding", "middle third", "last block", "D"],
        rows,
    )


def transfer_table(study: Study) -> Table:
    """Causal transfer, concept directions and the MLP probe, at the dear snapshots."""
    rows = []
    named = [("causal_transfer", condition, label) for condition, label in STRATA.items()]
    named += [("causal_transfer_random", "disjoint_scripts", "against random units, no common script")]
    named += [("causal_own", None, "own language")]
    for metric, condition, label in named:
        for step in sorted(set(study.main.loc[study.main["metric"] == metric, "step"])):
            table = study.by_concept(metric, condition, step)
            if table.size and len(table) > 1:
                contrast = two_way_interval(table.to_numpy(), study.clusters_of(table.columns))
                rows.append([f"causal transfer: {label}", str(step), interval(contrast), signs(table.mean(axis=1))])
    for metric, label in (
        ("direction_transfer", "AUROC of concept directions, other languages"),
        ("direction_own", "the same, own language"),
        ("accuracy_mlp", "MLP probe of the language, mean over layers"),
    ):
        table = study.means(metric)
        for step in table.index:
            chance = study.chance(metric, step)
            beside = "" if chance is None else f" (chance {chance:.3f})"
            rows.append([label, str(step), f"{table.loc[step].mean():.4f}{beside}", ""])
    return Table(
        "What the neurons do",
        "Causal transfer in nats per token of the concept's words, above other concepts' experts; over seeds and "
        "concepts.",
        ["measure", "step", "value", "seeds"],
        rows,
    )


def birth_table(study: Study) -> Table:
    """When the last step's experts of a language became experts in it, and in others."""
    births = study.births[study.births["part"] == "seeds"]
    where = np.where(births["language"] == births["other_language"], "own language", "other languages")
    counted = (
        births.assign(where=where).groupby(["where", "run_seed", "birth"], dropna=False)["units"].sum().reset_index()
    )
    rows = []
    for name, own in counted.groupby("where", sort=False):
        total = own.groupby("run_seed")["units"].sum()
        for step in sorted(set(own["birth"].dropna().astype(int))):
            until = own[own["birth"] <= step].groupby("run_seed")["units"].sum() / total
            rows.append([name, str(step), f"{until.mean():.3f}", f"{until.min():.3f} to {until.max():.3f}"])
    return Table(
        "Births",
        "Share of the last step's experts that are among the best 3 % of units for their concept from this step on, in "
        "their own language and in others.",
        ["read in", "from step", "share", "seeds"],
        rows,
    )


def alignment_table(study: Study) -> Table:
    rows = []
    for metric, label in (
        ("cka_debiased", "debiased CKA"),
        ("mutual_knn", "mutual k-NN"),
        ("bits_per_byte", "bits per byte"),
    ):
        table = study.means(metric)
        for step in table.index.intersection([0, 64, 256, 1024, 4096, study.steps[-1]]):
            chance = study.chance(metric, step)
            rows.append([label, str(step), f"{table.loc[step].mean():.4f}", "" if chance is None else f"{chance:.4f}"])
            rows[-1].append(f"{table.loc[step].min():.4f} to {table.loc[step].max():.4f}")
    return Table(
        "Alignment and loss",
        "Mean over pairs and layers; loss over languages.",
        ["measure", "step", "mean", "chance", "seeds"],
        rows,
    )


def capacity_table(study: Study) -> Table:
    table = capacity_values(study)
    widths, seeds, at_tokens, at_equal = capacity_comparison(table)
    losses = table.sort_values("step").groupby(["width", "run_seed"])["loss"].last()
    frame = pd.DataFrame({"width": widths, "tokens": at_tokens, "equal": at_equal, "seed": seeds})
    rows = []
    for width, own in frame.groupby("width"):
        parts = [
            f"{own[name].mean():.4f} ({own[name].min():.4f} to {own[name].max():.4f})" for name in ("tokens", "equal")
        ]
        rows.append([f"d{width}", str(len(own)), f"{losses[width].mean():.3f}", *parts])
    return Table(
        "Capacity",
        "Rise of R (no common script) over the split-half ceiling.",
        ["width", "seeds", "bits per byte at the end", "at equal tokens", "at equal loss"],
        rows,
    )


def clone_table(study: Study) -> Table:
    """The pairs of English and its clone alone: a known truth at two widths."""
    runs = study.rows[study.rows["part"] == "clone"]
    rows = []
    for width, own in runs.groupby("width"):
        for metric, label in (("rank_transfer", "R"), ("normalized", "R over its ceiling"), ("shared", "shared")):
            levels = overall(own, metric, "clone").pivot(index="step", columns="run_seed", values="value")
            if len(levels):
                first, last = levels.iloc[0], levels.iloc[-1]
                spread = f"{last.min():.4f} to {last.max():.4f}"
                rows.append(
                    [f"d{width}", label, f"{first.mean():.4f}", f"{last.mean():.4f}", spread, signs(last - first)]
                )
    return Table(
        "English with its clone alone",
        "The same language in other tokens: what sharing amounts to where nothing but form differs.",
        ["width", "measure", "first step", "last step", "seeds", "rise by seed"],
        rows,
    )


TABLES: Sequence[Callable[[Study], Table]] = (
    decision_table,
    sharing_table,
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
    return {
        identity_table: len(study.dips) > 0,
        birth_table: len(study.births) > 0,
        transfer_table: "causal_transfer" in metrics,
        alignment_table: "cka_debiased" in metrics,
        kinship_table: len(study.languages) > 0,
        capacity_table: len(capacity_values(study)) > 0,
        clone_table: "clone" in set(study.rows["part"]),
    }.get(make, True)
