"""One self-contained HTML file that shows a run, or several beside each other: figures, tables, provenance.

The page needs no network: the plotting script is inside it once and every figure is data. It draws whatever rows there
are: known analyses get a chapter with the questions of the field, every other measure one from the shape of its rows
(overall, per layer, per language, per pair), each beside its chance level and interval. Called by
`python -m analysis report RUN [RUN ...]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from analysis.base import class_name, find_class
from analysis.report import figures as draw
from analysis.report.comparison import add_comparison
from analysis.report.figures import select
from analysis.report.page import Page, folded
from analysis.report.pair_figures import dendrogram, is_directed, pair_matrix
from analysis.report.run import RunRecord, read_run
from analysis.report.summary import BITS, analyses_of_class, change_since_start, closing_tables
from analysis.report.tables import Table
from analysis.statistics import benjamini_hochberg


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the report of one run, or the comparison of several; returns its path.

    `out` defaults to `report.html` in the (first) run's folder.

    Raises:
        FileNotFoundError: a run folder does not exist or holds no results.
        ValueError: no run was given.
    """
    if not runs:
        raise ValueError("report: name at least one run folder")
    records = [read_run(run) for run in runs]
    path = Path(out) if out is not None else records[0].folder / "report.html"
    page = Page(" · ".join(record.name for record in records))
    if len(records) > 1:
        add_comparison(page, records)
    else:
        add_run(page, records[0])
    page.write(path)
    return path


def add_run(page: Page, record: RunRecord) -> None:
    """All chapters of one run."""
    page.chapter("In short")
    _verdicts(page, record)
    page.grid(closing_tables(record))
    if not record.history.empty:
        _training(page, record)
    probes = analyses_of_class(record, "LanguageProbe")
    overlaps = analyses_of_class(record, "ConceptOverlap")
    steering = analyses_of_class(record, "Steering")
    for name in probes:
        _language_probe(page, record, name)
    for name in overlaps:
        _overlap(page, record, name)
    if steering:
        from analysis.report.chapters.steering import add_steering

        for name in steering:
            add_steering(page, record, name)
    for name in sorted(record.frame["analysis"].unique()):
        if name not in (*probes, *overlaps, *steering):
            page.chapter(name.replace("_", " ").capitalize(), _about(record, name))
            any_measure(page, record, name)
    _provenance(page, record)


def _verdicts(page: Page, record: RunRecord) -> None:
    for name in analyses_of_class(record, "ConceptOverlap"):
        change = change_since_start(record, name, "shared")
        if change is None:
            page.verdict(
                f"{name}: no step-0 network was measured on the same sentences, so a level above chance cannot be told "
                "from surface overlap (shared subwords, names, lengths)."
            )
            continue
        page.verdict(
            f"Concept neurons shared between languages ({name}): {100 * change.last:.2f} % of the top K at step "
            f"{change.step}, {100 * change.first:.2f} % in the untrained network on the same sentences; difference "
            f"{100 * change.difference:+.2f} points, 95 % interval [{100 * change.low:+.2f}, {100 * change.high:+.2f}] "
            f"over {change.num_concepts} concepts: {change.verdict}. One training run; a claim about training needs "
            "several seeds."
        )


def _training(page: Page, record: RunRecord) -> None:
    page.chapter("Training", "Loss on held-out text per language, in bits per byte, and what the optimiser saw.")
    history = record.history
    keys = set(history["key"])
    items: list[go.Figure | tuple[go.Figure, str]] = []
    if any(key.startswith(BITS + "/") for key in keys):
        items.append(draw.history_lines(history, BITS, "Held-out loss per language", unit="bits per byte"))
    for key, title, unit in (
        ("train/loss", "Training loss", "nats per token"),
        ("train/gradient_norm", "Gradient norm before clipping", ""),
        ("perf/tokens_per_second", "Throughput", "tokens per second"),
        ("perf/mfu", "Model FLOP utilisation", ""),
        ("optim/lr_0", "Learning rate", ""),
    ):
        rows = history[history["key"] == key]
        if not rows.empty:
            renamed = rows.assign(key="x/" + key.rpartition("/")[2])
            items.append(draw.history_lines(renamed, "x", title, unit=unit))
    page.grid(items)


def _language_probe(page: Page, record: RunRecord, name: str) -> None:
    page.chapter(
        "Language identity by layer",
        "Accuracy of a linear probe that reads the language off hidden states of single tokens, sentences never shared "
        "between training and test. Token identity is what the token alone gives away; a layer above it uses context.",
    )
    frame = record.frame
    accuracy = select(frame, name, "accuracy", by=("layer",))
    if not accuracy.empty:
        baselines = {}
        for metric in ("accuracy_token_identity", "accuracy_shuffled", "accuracy_majority"):
            rows = select(frame, name, metric, by=("layer",))
            rows = select(frame, name, metric) if rows.empty else rows
            if not rows.empty:
                baselines[metric.removeprefix("accuracy_").replace("_", " ")] = rows
        page.grid(
            [
                draw.layers_by_steps(accuracy, "Probe accuracy, layer by training step", unit="accuracy"),
                draw.layer_curves(accuracy, "Probe accuracy by layer", unit="accuracy", baselines=baselines),
            ]
        )
    page.heading("Further measures of the probe")
    any_measure(page, record, name, leave_out=("accuracy", "accuracy_shuffled", "accuracy_majority"))


def _overlap(page: Page, record: RunRecord, name: str) -> None:
    page.chapter(
        "Concept neurons shared between languages",
        "The top K units by average precision for a concept in one language, and the share of them that are also top "
        "units for the same concept in another. Dashed: expected by chance. Dotted: the untrained network on the same "
        "sentences, which shares units through surface features.",
    )
    frame = record.frame
    shared = select(frame, name, "shared")
    layers = select(frame, name, "shared_units", by=("layer",))
    pairs = select(frame, name, "shared", by=("language", "other_language"))
    items: list[go.Figure | tuple[go.Figure, str] | None] = []
    if not shared.empty:
        items.append(
            draw.over_steps(shared, "Shared share of the top K, mean over pairs and concepts", unit="shared / K")
        )
    if not layers.empty:
        items.append(draw.profile(layers, "Where the shared neurons are", unit="shared units"))
    if not pairs.empty:
        steps = sorted(pairs["step"].unique())
        last = pairs[pairs["step"] == steps[-1]]
        items.append(pair_matrix(last, f"Shared / K by language pair, step {steps[-1]}"))
        if steps[0] == 0 and len(steps) > 1:
            first = pairs[pairs["step"] == 0].set_index(["language", "other_language"])["value"]
            difference = last.set_index(["language", "other_language"])
            difference = difference.assign(value=difference["value"] - first).reset_index().dropna(subset=["value"])
            title = f"Change against the untrained network, step {steps[-1]}"
            items.append(pair_matrix(difference, title, diverging=True))
        items.append(dendrogram(last, f"Languages by shared concept neurons, step {steps[-1]}"))
    page.grid(items)
    page.heading("Nulls, ceilings and further measures")
    any_measure(page, record, name, leave_out=("shared", "shared_units"))


def any_measure(page: Page, record: RunRecord, name: str, leave_out: Sequence[str] = ()) -> None:
    """Whatever rows an analysis has, drawn by their shape; the largest tables are averaged over pairs and concepts."""
    frame = record.frame[record.frame["analysis"] == name]
    overall = overall_table(record, name)
    if overall is not None:
        page.grid([overall])
    items: list[go.Figure | tuple[go.Figure, str] | None] = []
    for metric in frame["metric"].drop_duplicates():
        if metric not in leave_out:
            items.extend(_figures_of(frame[frame["metric"] == metric], name, metric))
    if len(items) <= 8:
        page.grid(items)
        return
    page.grid(items[:8])
    page.raw(f"<details><summary>{len(items) - 8} more figures</summary>")
    page.grid(items[8:])
    page.raw("</details>")


def _figures_of(rows: pd.DataFrame, name: str, metric: str) -> Iterable[go.Figure | tuple[go.Figure, str] | None]:
    title = metric.replace("_", " ")
    overall = select(rows, name, metric)
    if overall["step"].nunique() > 1:
        yield draw.over_steps(overall, title)
    layers = select(rows, name, metric, by=("layer",))
    averaged = ""
    if layers.empty:
        layers = rows[rows["layer"].notna() & rows["seed"].isna()]
        averaged = "Mean over languages, pairs and kinds of unit."
        if not layers.empty:
            layers = (
                layers.groupby(["step", "layer"], as_index=False)
                .agg({"value": "mean", "chance": "mean"})
                .assign(low=float("nan"), high=float("nan"))
            )
    if not layers.empty:
        if layers["step"].nunique() > 1:
            yield draw.layers_by_steps(layers, f"{title}, layer by training step"), averaged
        yield draw.layer_curves(layers, f"{title} by layer"), averaged
    languages = select(rows, name, metric, by=("language",))
    if not languages.empty:
        yield draw.over_steps(languages, f"{title} per language", group="language")
    pairs = select(rows, name, metric, by=("language", "other_language"))
    if not pairs.empty:
        step = int(pairs["step"].max())
        newest = pairs[pairs["step"] == step]
        yield pair_matrix(newest, f"{title}, step {step}", directed=is_directed(newest)), _significance(rows)


def _significance(rows: pd.DataFrame) -> str:
    """How many tests of a measure stand after Benjamini-Hochberg over steps, layers (their mean included) and pairs."""
    tested = rows[rows["p"].notna() & rows["language"].notna() & rows["other_language"].notna()]
    if tested.empty:
        return ""
    q = benjamini_hochberg(tested["p"].to_numpy())
    family = "steps x layers x pairs" if tested["layer"].notna().any() else "steps x pairs"
    return f"{int((q < 0.05).sum()):,} of {len(tested):,} tests ({family}) have q < 0.05 (Benjamini-Hochberg)."


def overall_table(record: RunRecord, name: str) -> Table | None:
    """Overall numbers of an analysis at the first and the last snapshot, with interval and chance."""
    frame = record.frame[record.frame["analysis"] == name]
    rows = []
    for metric in frame["metric"].drop_duplicates():
        values = select(frame, name, metric).sort_values("step")
        if values.empty:
            continue
        first, last = values.iloc[0], values.iloc[-1]
        interval = "" if pd.isna(last["low"]) else f"[{last['low']:.4g}, {last['high']:.4g}]"
        chance = "" if pd.isna(last["chance"]) else f"{last['chance']:.4g}"
        probability = "" if pd.isna(last["p"]) else f"{last['p']:.2g}"
        rows.append(
            (metric.replace("_", " "), f"{first['value']:.4g}", f"{last['value']:.4g}", interval, chance, probability)
        )
    if not rows:
        return None
    steps = sorted(frame["step"].unique())
    return Table(
        title=f"Overall numbers of {name}",
        header=("", f"step {steps[0]}", f"step {steps[-1]}", "95 % interval", "chance", "p"),
        rows=tuple(rows),
    )


def _about(record: RunRecord, name: str) -> str:
    """First paragraph of the docstring of the analysis's class, or "" for a class that is not known here."""
    for _, analysis, stamp in record.stamps():
        if analysis == name:
            found = find_class(class_name(stamp["settings"]))
            text = (found.__doc__ or "") if found is not None else ""
            return " ".join(text.strip().split("\n\n")[0].split())
    return ""


def _provenance(page: Page, record: RunRecord) -> None:
    page.chapter("Provenance", "What exactly was measured, with which settings, at which cost.")
    if record.identity:
        page.raw(folded("Identity of the weights", record.identity))
    settings: dict[str, dict] = {}
    for step, analysis, stamp in record.stamps():
        entry = settings.setdefault(analysis, {"settings": stamp["settings"], "fingerprints": {}})
        entry["fingerprints"].setdefault(stamp["fingerprint"], []).append(step)
    page.raw(folded("Settings of the analyses", settings))
    if record.config:
        page.raw(folded("Configuration of the run", record.config))
