"""The methods of a run in words, as a paper would give them: model, data, measures, settings, provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator

from analysis.base import class_name
from analysis.report.run import RunRecord

SETTINGS = ("concepts", "texts", "languages", "k", "share", "pool", "seeds", "site_set")
"""Settings of an analysis that belong into the sentence."""


def methods(record: RunRecord) -> list[str]:
    """One paragraph a topic; what a run does not tell is left out."""
    return [" ".join(paragraph) for paragraph in (list(_training(record)), list(_measures(record))) if paragraph]


def _training(record: RunRecord) -> Iterator[str]:
    model = record.config.get("model") or {}
    shape = [f"{key} {model[key]}" for key in ("num_layers", "d_model", "attention_heads", "ffn_dim") if key in model]
    parameters = record.parameters
    if shape or parameters:
        count = f"{parameters / 1e6:.1f} M parameters" if parameters else ""
        yield f"Model: {', '.join(part for part in (count, *shape) if part)}."
    tokens = [count for count in record.tokens.values() if count]
    if tokens:
        yield f"Trained on {max(tokens):,} tokens in {max(record.tokens):,} steps."
    data = record.config.get("data") or {}
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


def _measures(record: RunRecord) -> Iterator[str]:
    newest = {analysis: stamp["settings"] for _, analysis, stamp in record.stamps()}
    for name, settings in sorted(newest.items()):
        chosen = {key: settings[key] for key in SETTINGS if settings.get(key) not in (None, [], "")}
        chosen = {key: value for key, value in chosen.items() if not str(value).startswith("sha256:")}
        said = ", ".join(f"{key} {_short(value)}" for key, value in chosen.items())
        yield f"{name}: {class_name(settings)} version {settings['version']}{f' ({said})' if said else ''}."


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")
