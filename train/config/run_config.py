"""The configuration kept in a run folder: saved whole, compared before a run goes on.

A run folder holds one run. Starting again in it either continues that run under the same configuration, or is refused
with a list of what differs: Lightning would silently prefer the checkpoint's values to the given ones (issue 20801).
Options that cannot change the numbers (logging, callbacks, worker counts) may differ; they are shown and saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babelscope.files import write_text

CONFIG_FILE = "config.yaml"

DECISIVE = (
    "seed_everything",
    "model.",
    "data.",
    "trainer.max_steps",
    "trainer.gradient_clip_val",
    "trainer.precision",
)
"""Keys, or prefixes of keys, whose values determine the weights. The world size is compared with the checkpoint's."""
HARMLESS = (
    "model.compile",
    "model.gradient_checkpointing",
    "model.max_skipped_steps",
    "model.throughput_window",
    "data.allow_changes",  # of run folders before 2026-11-25
    "data.cache",
    "data.num_workers",
    "data.prepare_workers",
    "data.validation_",
)
"""Exceptions under those prefixes: they change speed or reports, not what is learned (beyond rounding)."""


@dataclass(frozen=True)
class Difference:
    """One option whose stored and given values differ."""

    key: str
    stored: Any
    given: Any

    @property
    def decisive(self) -> bool:
        """Whether the option determines the weights."""
        return self.key.startswith(DECISIVE) and not self.key.startswith(HARMLESS)

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.stored)} -> {_short(self.given)}"


def find_differences(
    stored: Mapping[str, Any], given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[Difference]:
    """Options whose values differ, in the order of `given`, then those that only `stored` has (given as None).

    An option that is younger than the stored run had its default there.
    """
    after = dict(_flat(given))
    before = {key: value for key, value in _flat(defaults) if key in after} | dict(_flat(stored))
    keys = [*after, *(key for key in before if key not in after)]
    return [Difference(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def save_config(folder: Path, text: str) -> None:
    """Write the configuration of a run: never half, and never touched when nothing changed."""
    path = folder / CONFIG_FILE
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    write_text(path, text)


def _short(value: Any, width: int = 100) -> str:
    """Whole lists of callbacks would fill the screen."""
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; lists are values."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
