"""The tables of docs/first_light.md beside R: language identity, what neurons do, births, capacity, the clone pairs."""

from __future__ import annotations

import pandas as pd

from analysis.concepts.families import FAMILIES
from analysis.statistics import two_way_interval
from studies.first_light.decisions import widest_place
from studies.first_light.hypotheses import capacity_comparison, capacity_values
from studies.first_light.markdown import Table, interval, mean_at, numbered, signs
from studies.first_light.study import LAST, STRATA, Study, overall


def identity_table(study: Study) -> Table:
    """Language identity along depth and training."""
    steps, dips, middle = study.dip_arrays
    chosen = steps[widest_place(dips)]
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
                seeds = signs(table.mean(axis=1).reindex(study.steps_of))
                rows.append([f"causal transfer: {label}", f"{step:,}", interval(contrast), seeds])
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
        "concepts (·: a seed of which it is not measured).",
        ["measure", "step", "value", "seeds"],
        rows,
    )


def again_table(study: Study) -> Table:
    """Seeds trained a second time, on another machine: what another rounding of the same training changes."""
    rows = []
    named = [(f"R, {label}", "rank_transfer", condition) for condition, label in STRATA.items()]
    for label, metric, condition in [*named, ("bits per byte", "bits_per_byte", None)]:
        first, again = (
            overall(part[part["step"] == LAST], metric, condition).set_index("run_seed")["value"]
            for part in (study.main, study.again)
        )
        for seed in sorted(set(first.index) & set(again.index)):
            rows.append([label, str(seed), f"{first[seed]:.4f}", f"{again[seed]:.4f}"])
    return Table(
        "The same seed on another machine",
        f"Seeds that were trained twice, by the same code and text, at step {LAST:,}. Weights and batches begin alike; "
        "another processor rounds otherwise, and training makes the difference grow.",
        ["number", "seed", "first run", "trained again"],
        rows,
    )


def birth_table(study: Study) -> Table:
    """In which order languages come to have the last step's experts of others."""
    found = []
    for read in sorted(set(study.births["other_language"])):
        table = study.births[study.births["other_language"] == read]
        from_others = table["language"].isin(set(FAMILIES) - {read}) if read in FAMILIES else table["language"] == "en"
        own, others = _born(table[table["language"] == read]), _born(table[from_others])
        found.append((others.iloc[-1].mean(), read, own, others))
    rows = [
        [
            read if read in FAMILIES else f"{read}, of English",
            _half(own),
            f"{share:.3f} ({others.iloc[-1].min():.3f} to {others.iloc[-1].max():.3f})",
            _half(others),
        ]
        for share, read, own, others in sorted(found, key=lambda entry: (-entry[0], entry[1]))
    ]
    seeds = sorted(set(study.births["run_seed"]))
    return Table(
        "Which languages join, and when",
        "The 50 best units of the last step for every concept and language, followed back "
        f"({numbered('seed', seeds)}). Expert in a language: among the best 3 % of the units for the concept there, "
        "from a step on to the end (by chance 3 % are). Mean over seeds, and their range.",
        [
            "read in",
            "half of its own are experts from step",
            "share of the other languages' that are experts at the end",
            "half of these from step",
        ],
        rows,
    )


def _born(births: pd.DataFrame) -> pd.DataFrame:
    """Steps by seeds: the share of the units that are experts from then on to the end; a first row before any birth."""
    totals = births.groupby("run_seed")["units"].sum()
    counts = births.pivot_table(index="birth", columns="run_seed", values="units", aggfunc="sum")
    never = pd.DataFrame(0.0, index=[-1], columns=totals.index)
    return pd.concat([never, counts.sort_index()]).fillna(0.0).cumsum() / totals


def _half(born: pd.DataFrame) -> str:
    """The first step at which half of those are experts that are at the end, mean over seeds."""
    mean = born.mean(axis=1)
    return f"{int((mean >= mean.iloc[-1] / 2).idxmax()):,}" if mean.iloc[-1] > 0 else "never"


def alignment_table(study: Study) -> Table:
    last = study.steps[-1]
    shown = [step for step in (0, 64, 256, 1024, 4096) if step in study.steps[:-1]] + [last]
    rows = []
    for metric, label in (
        ("cka_debiased", "debiased CKA"),
        ("mutual_knn", "mutual k-NN"),
        ("bits_per_byte", "bits per byte"),
    ):
        table, chance = study.means(metric), study.chance(metric, last)
        if last in table.index:
            levels = [mean_at(table, step, 4) for step in shown]
            spread = f"{table.loc[last].min():.4f} to {table.loc[last].max():.4f}"
            rows.append([label, *levels, spread, "" if chance is None else f"{chance:.4f}"])
    return Table(
        "Alignment and loss",
        "Mean over pairs and layers; loss over languages (its chance: unigrams).",
        ["measure", *(f"step {step:,}" for step in shown), "seeds, last step", "chance"],
        rows,
    )


def capacity_table(study: Study) -> Table:
    table = capacity_values(study)
    widths, seeds, at_tokens, at_equal = capacity_comparison(table)
    losses = table.sort_values("step").groupby(["width", "run_seed"])["loss"].last()
    frame = pd.DataFrame({"width": widths, "tokens": at_tokens, "equal": at_equal, "seed": seeds})
    rows = []
    for width, own in frame.groupby("width"):
        parts = []
        for name in ("tokens", "equal"):
            spread = f" ({own[name].min():.4f} to {own[name].max():.4f})" if len(own) > 1 else ""
            parts.append(f"{own[name].mean():.4f}{spread}")
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
