"""What an analysis is: settings in, tidy rows out.

An `Analysis` decides *what* is measured on a `Snapshot`; when that happens is decided by its two consumers, the live
callback and the post-hoc runner. Both read the same YAML list through `analysis.measures.load_analyses`.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pyarrow as pa

from analysis.cost import Shape
from analysis.snapshots import Snapshot
from babelscope.files import file_sha256, folder_sha256
from babelscope.records import refuse_repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured number and everything it belongs to; a field that does not apply is None.

    `chance` is the value expected if nothing were there (what it means is said by the analysis), `low`/`high` bound the
    95 % interval (NaN for both, the interval of a single thing, becomes None) and `p` is the probability of a value at
    least this large under the null: every figure travels together with its chance level.
    """

    metric: str
    value: float
    layer: int | None = None
    """Block index from 0, as in module names; -1 is the embedding output."""
    kind: str | None = None
    """Kind of site (`attn.q`, `mlp.in`, ...), see `analysis.extraction.sites`."""
    condition: str | None = None
    """Under which condition of an experiment (`experts`, `random`, `none`), or for which stratum of language pairs."""
    k: int | None = None
    """How many units were chosen or held, where an analysis compares several numbers."""
    concept: str | None = None
    language: str | None = None
    """ISO 639-1 code. For pairs, `language` < `other_language` unless the measure is directed (from -> to)."""
    other_language: str | None = None
    seed: int | None = None
    chance: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and math.isnan(self.low) and math.isnan(self.high):
            object.__setattr__(self, "low", None)
            object.__setattr__(self, "high", None)
        for name in ("value", "chance", "low", "high", "p"):
            number = getattr(self, name)
            if number is None:
                continue
            if not math.isfinite(number):
                raise ValueError(
                    f"{self.metric}: {name} is {number} (layer {self.layer}, concept {self.concept}, "
                    f"language {self.language}); a row never holds NaN or infinity"
                )
            object.__setattr__(self, name, float(number))  # numbers of NumPy and torch among them


@dataclass(frozen=True)
class Attachment:
    """A table beside the rows (expert units, generated texts), stored as `<analysis>.<name>.parquet`."""

    name: str
    table: pa.Table


class Kept:
    """What an analysis made for one snapshot and needs for the next, made anew when what it depends on changes."""

    def __init__(self) -> None:
        self._held: tuple[object, Any] | None = None

    def get(self, depends_on: object, make: Callable[[], Any]) -> Any:
        if self._held is None or self._held[0] != depends_on:
            self._held = depends_on, make()
        return self._held[1]


@dataclass(kw_only=True)
class Analysis(ABC):
    """Base of every measure. Subclasses are keyword-only dataclasses: their fields are the options of the YAML file.

    A field that names a file (or, if it is one of `folders`, a folder) enters the fingerprint with the digest of the
    content, so that an edited concept file never passes for the old one.
    """

    name: str = ""
    """Name in tables, files and W&B keys; must be unique in a list. Defaults to the class's `default_name`."""

    default_name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    """Raise when the numbers change for the same settings: stored results of older versions become stale."""
    headlines: ClassVar[tuple[str, ...]] = ()
    """Metrics for a live page, most important first; the first that has rows by layer is the analysis's curve."""
    needs_null: ClassVar[bool] = False
    """Whether its values are held against random networks, see `analysis.checkpoints.random_networks`."""
    not_settings: ClassVar[tuple[str, ...]] = ("name", "batch_tokens", "max_bytes")
    """Fields that cannot change the numbers, so they stay out of the fingerprint."""
    folders: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Fields that may name a folder, with the glob pattern of its files that count."""
    positive: ClassVar[tuple[str, ...]] = ()
    """Options that must be at least 1, beside those of the base."""
    not_negative: ClassVar[tuple[str, ...]] = ("seed",)
    """Options that must be at least 0."""
    fractions: ClassVar[tuple[str, ...]] = ()
    """Options that are shares: above 0 and at most 1."""
    min_languages: ClassVar[int] = 1
    """Languages that it needs, where it has the option `languages`."""

    def __post_init__(self) -> None:
        self.name = self.name or self.default_name
        if not self.name or not self.name.replace("_", "").isalnum():
            raise ValueError(f"analysis name {self.name!r}: use letters, digits and underscores")
        for option in (field.name for field in fields(self) if field.init):
            given = getattr(self, option)
            least = 0 if option in self.not_negative else 1
            counted = {"batch_tokens", "max_bytes", "max_length", *self.positive, *self.not_negative}
            for number in given if isinstance(given, list | tuple) else [given]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{self.name}: {option}={given} must be finite")
                if option in self.fractions and number is not None and not 0 < number <= 1:
                    raise ValueError(f"{self.name}: {option}={given} must be above 0 and at most 1")
                if option in counted and number is not None and number < least:
                    raise ValueError(f"{self.name}: {option}={given} must be at least {least}")
            if option in {"languages", "names", "only_concepts"}:
                refuse_repeated(self.name, option, given)
            if option == "languages" and 0 < len(given) < self.min_languages:
                raise ValueError(f"{self.name}: one language ({given[0]!r}) compares with nothing; name two")

    @abstractmethod
    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        """Measure `snapshot`; draws no random numbers from global generators and leaves the model as it found it."""

    def work(self, shape: Shape) -> float | None:
        """Predicted FLOPs of one snapshot of a model of this shape (see `analysis.cost`); None where nobody predicts.

        Raises:
            FileNotFoundError, ValueError: a file of texts that is not there or not readable.
        """
        return None

    def settings(self) -> dict[str, object]:
        """Everything that determines the numbers, as JSON values. The class counts by its name, not by its file."""
        chosen: dict[str, object] = {"analysis": type(self).__name__}
        chosen["version"] = self.version
        for field in fields(self):
            if not field.init or field.name in self.not_settings:
                continue
            value = getattr(self, field.name)
            chosen[field.name] = value
            if isinstance(value, (str, Path)) and len(str(value)) < 512 and Path(value).is_file():
                chosen[field.name] = f"sha256:{file_sha256(value)}"
            elif field.name in self.folders and (digests := folder_sha256(Path(value), self.folders[field.name])):
                chosen[field.name] = digests
        return json.loads(json.dumps(chosen, default=str, sort_keys=True))

    def fingerprint(self) -> str:
        """Short hash of `settings()`: results with another fingerprint are stale."""
        return fingerprint_of(self.settings())


def fingerprint_of(settings: dict) -> str:
    """Short hash of settings, as `Analysis.settings` gives them or as a stamp on disk holds them.

    Stamps written before 2026-11-25 name classes with their module; the module is dropped here, so those results count.
    """
    named = {**settings, "analysis": class_name(settings)}
    if isinstance(detector := settings.get("detector"), dict):
        named["detector"] = {**detector, "class": str(detector.get("class")).rpartition(".")[2]}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def class_name(settings: dict) -> str:
    """Name of the analysis class in the settings of a stamp, old or new."""
    return str(settings["analysis"]).rpartition(".")[2]


def find_class(name: str) -> type[Analysis] | None:
    """The analysis class of this name among those that are imported, or None."""
    return next((found for found in subclasses(Analysis) if found.__name__ == name), None)


def subclasses(base: type[Any]) -> Iterator[type[Any]]:
    """Every imported class below `base`, depth first."""
    for found in base.__subclasses__():  # type: type[Any]
        yield found
        yield from subclasses(found)
