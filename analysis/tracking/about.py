"""What a W&B page says of a run beside its curves: configuration, tags, and the summary with best, last and verdict.

All of it is read from the run folder (`config.yaml`, `run.json`, snapshots, result tables), so that a page made again
says the same.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from analysis.report.headlines import levels
from analysis.report.report import verdicts
from analysis.report.run import count_parameters, read_json, read_run
from analysis.results import ResultTable
from babelscope.yaml_text import read_config

PACKAGES = ("babelscope", "torch", "transformers", "pytorch-lightning", "tokenizers", "wandb")
LOSS = "val/bits_per_byte/mean"


def configuration(root: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a run is, under dotted keys: its options, the settings of every analysis, model, data, versions.

    `model.d_model`, `trainer.callbacks.SnapshotWriter.schedule.every`, `analyses.overlap.k`, `parameters`, `tokens`,
    `data_fingerprint`, `git`, `versions.torch`.
    """
    config = dict(_flat(read_config(root / "config.yaml") or {}))
    steps = config.get("trainer.max_steps")
    if isinstance(steps, int) and {"data.batch_size", "data.block_size"} <= set(config):
        config["tokens"] = steps * config["data.batch_size"] * config["data.block_size"]
    for folder in sorted(root.glob("snapshots/step_*"))[-1:]:
        snapshot = read_json(folder / "snapshot.json")
        config["data_fingerprint"] = snapshot.get("data_fingerprint")
    table = ResultTable(result_folder(root))
    for step, analysis in table.entries():
        stamp = table.stamp(step, analysis)
        if stamp is not None:
            config |= dict(_flat(stamp["settings"], f"analyses.{analysis}."))
    parameters = count_parameters(root)
    if parameters is not None:
        config["parameters"] = parameters[0]
    config["versions.python"] = platform.python_version()
    config |= {f"versions.{name}": found for name in PACKAGES if (found := _version(name)) is not None}
    return config | {"git": identity.get("git"), "created": identity.get("created")}


def result_folder(root: Path) -> Path:
    """`results` of a run folder; a folder of post-hoc results is one itself."""
    return root / "results" if (root / "results").is_dir() or (root / "config.yaml").is_file() else root


def tags_of(config: Mapping[str, Any]) -> Iterator[str]:
    """Size, number of languages and seed: what runs are told apart by."""
    if parameters := config.get("parameters"):
        yield f"{parameters / 1e6:.3g}M"
    if languages := config.get("data.languages"):
        yield f"{len(languages)} languages"
    if (seed := config.get("seed_everything")) is not None:
        yield f"seed {seed}"


def summary(root: Path) -> dict[str, Any]:
    """Best and last loss, chance and step 0 of every headline, and the verdict in words."""
    try:
        record = read_run(root)
    except FileNotFoundError:
        return {}
    found: dict[str, Any] = {}
    losses = record.history[record.history["key"] == LOSS].sort_values("step")
    if len(losses):
        best, last = losses.loc[losses["value"].idxmin()], losses.iloc[-1]
        found |= {f"best/{LOSS}": float(best["value"]), "best/step": int(best["step"])}
        found |= {f"last/{LOSS}": float(last["value"])}
    if record.steps:
        found["last/step"] = max(record.steps)
        for analysis in record.classes:
            found |= levels(record.table, analysis)
    said = verdicts(record)
    return found | ({"verdict": " ".join(said)} if said else {})


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; entries of a list with a `class_path` go by the name of their class."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(e, Mapping) and "class_path" in e for e in value):
            for entry in value:
                short = str(entry["class_path"]).rpartition(".")[2]
                yield from _flat(entry.get("init_args") or {"used": True}, f"{name}.{short}.")
        else:
            yield name, value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
