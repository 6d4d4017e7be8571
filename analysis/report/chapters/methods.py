"""The methods of a run in words, as a paper would give them: model, data, measures, settings, provenance."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.base import class_name
from analysis.report.explanations import heading_of
from analysis.report.run import RunRecord

SHAPE = {
    "num_layers": "{} layers",
    "d_model": "width {}",
    "attention_heads": "{} attention heads",
    "ffn_dim": "feed-forward width {}",
}
SETTINGS = {
    "names": "concepts {}",
    "only_concepts": "concepts {}",
    "pool": "pooled over tokens by {}",
    "site_set": "units of the {} sites",
    "splits": "splits {}",
    "texts": "texts {}",
    "concepts": "concept file {}",
    "seeds": "seeds {}",
    "seed": "seed {}",
}
"""Settings of an analysis that belong into its sentence; a file is told by the beginning of its hash."""


def methods(record: RunRecord) -> list[str]:
    """A paragraph on the training, then one an analysis; what a run does not tell is left out."""
    training = " ".join(_training(record))
    return [*([training] if training else []), *_measures(record)]


def _training(record: RunRecord) -> Iterator[str]:
    model = record.config.get("model") or {}
    shape = [said.format(model[key]) for key, said in SHAPE.items() if key in model]
    if record.parameters:
        shape.insert(0, f"{record.parameters[0] / 1e6:.1f} M parameters")
    if shape:
        yield f"Model: {', '.join(shape)}."
    tokens = [count for count in record.tokens.values() if count]
    if tokens:
        yield f"Trained on {max(tokens):,} tokens in {max(record.tokens):,} steps."
    data = record.config.get("data") or {}
    if {"batch_size", "block_size"} <= set(data):
        yield f"A step is {data['batch_size']} sequences of {data['block_size']} tokens."
    if languages := data.get("languages"):
        yield f"Languages of the training text: {', '.join(languages)}."
    if (seed := record.config.get("seed_everything")) is not None:
        yield f"Seed {seed}."
    if commit := record.about.get("git"):
        yield f"Commit {commit[:12]}."
    if record.steps:
        yield (
            f"{len(record.steps)} checkpoints were measured (steps {record.steps[0]:,} to {record.steps[-1]:,})"
            + (f", {len(record.usable_steps)} of them usable." if record.unusable else ".")
        )
    if folder := (record.config.get("trainer") or {}).get("default_root_dir"):
        yield f"Command: python -m train fit --config {folder}/config.yaml."


def _measures(record: RunRecord) -> Iterator[str]:
    for name, settings in sorted(record.settings.items()):
        rows = record.frame[record.frame["analysis"] == name]
        languages = {*rows["language"].dropna(), *rows["other_language"].dropna()}
        counts = {"concepts": rows["concept"].nunique(), "languages": len(languages)}
        said = [f"{count} {what}" for what, count in counts.items() if count]
        if "k" in settings:
            share = settings.get("share")
            said.append(f"K {_short(share)} of all units" if share else f"K {_short(settings['k'])}")
        said += [text.format(_short(settings[key])) for key, text in SETTINGS.items() if settings.get(key) is not None]
        said = [text for text in said if not text.endswith(" ")]  # an empty list is the default
        class_of = class_name(settings)
        yield f"{heading_of(class_of) or class_of} ({name}, version {settings['version']}): {', '.join(said)}."


def _short(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).removeprefix("sha256:")[:12] if str(value).startswith("sha256:") else str(value)
