"""The tables of docs/first_light.md beside R: language identity, what neurons do, births, capacity, the clone pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.statistics import two_way_interval
from studies.first_light.hypotheses import capacity_comparison, capacity_values
from studies.first_light.markdown import Table, interval, mean_at, signs
from studies.first_light.study import STRATA, Study, overall


def identity_table(study: Study) -> Table:
    """Language identity along depth and training."""
    steps, dips, middle = study.dip_arrays
    chosen = steps[int(dips[0].mean(-1).argmax())]
    ends = {layer: study.means("accuracy_shared", layer=layer) for layer in (-1, 7)}
    rows = []
    for place, step in enumerate(steps):
        levels = mean_at(ends[-1], step), f"{middle[:, place].mean():.3f}", mean_at(ends[7], step)
        rows.append([f"{step:,}", *levels, interval(two_way_interval(dips[:, place]), 3)])
    return Table(
        "Language identity on shared tokens",
        f"Accuracy of the linear probe. D: the middle minus the larger of both ends, over seeds and keys. Seed 1 has "
        f"its largest D at step {chosen:,}.",
        ["step", "embedding", "middle third", "last block", "D"],
        rows,
    )


def transfer_table(study: Study) -> Table:
    """Causal transfer, concept directions and the MLP probe, at the dear snapshots."""
    rows = []
    named: list[tuple[str, str | None, str]] = [
        ("causal_transfer", condition, label) for condition, label in STRATA.items()
    ]
    named += [("causal_transfer_random", "disjoint_scripts", "against random units, no common script")]
    named += [("causal_own", None, "own language")]
    for metric, condition, label in named:
        for step in sorted(set(study.main.loc[study.main["metric"] == metric, "step"])):
            table = study.by_concept(metric, condition, step)
            if table.size and len(table) > 1:
                contrast = two_way_interval(table.to_numpy(), study.clusters_of(table.columns))
                rows.append([f"causal transfer: {label}", f"{step:,}", interval(contrast), signs(table.mean(axis=1))])
    for metric, label in (
        ("direction_transfer", "AUROC of concept directions, other languages"),
        ("direction_own", "the same, own language"),
        ("accuracy_mlp", "MLP probe of the language, mean of embeddings, middle and last"),
    ):
        table = study.means(metric)
        for step in table.index:
            chance = study.chance(metric, step)
            beside = "" if chance is None else f" (chance {chance:.3f})"
            rows.append([label, f"{step:,}", f"{table.loc[step].mean():.4f}{beside}", ""])
    return Table(
        "What the neurons do",
        "Causal transfer in nats per token of the concept's words, above other concepts' experts; over seeds and "
        "concepts.",
        ["measure", "step", "value", "seeds"],
        rows,
    )


def birth_table(study: Study) -> Table:
    """When the last step's experts of a language became experts in it, and in others."""
    where = np.where(study.births["language"] == study.births["other_language"], "own language", "other languages")
    counted = (
        study.births.assign(where=where)
        .groupby(["where", "run_seed", "birth"], dropna=False)["units"]
        .sum()
        .reset_index()
    )
    rows = []
    for name, own in counted.groupby("where", sort=False):
        total = own.groupby("run_seed")["units"].sum()
        for step in sorted(set(own["birth"].dropna().astype(int))):
            until = (
                own[own["birth"] <= step].groupby("run_seed")["units"].sum().reindex(total.index, fill_value=0) / total
            )
            rows.append([name, f"{step:,}", f"{until.mean():.3f}", f"{until.min():.3f} to {until.max():.3f}"])
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
            rows.append(
                [label, f"{step:,}", f"{table.loc[step].mean():.4f}", "" if chance is None else f"{chance:.4f}"]
            )
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
