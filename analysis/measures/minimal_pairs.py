"""Does the model prefer the grammatical sentence? Minimal pairs by language: behaviour beside internals.

A pair is right if the acceptable sentence has the higher probability as a whole (Warstadt et al., BLiMP, TACL 2020;
Jumelet et al., MultiBLiMP, arXiv 2504.02768, for 101 languages). Files are tab-separated with a header, in
MultiBLiMP's layout (`<language>/data.tsv` with `sen`, `wrong_sen` and `phenomenon`), or one file with a column
`language`.

Shapes:  N pairs
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from analysis.base import Analysis, Kept, Row
from analysis.extraction.losses import content_tokens, text_losses
from analysis.geometry.calibration import influence_interval
from analysis.snapshots import Snapshot
from babelscope.files import file_stamp
from babelscope.records import refuse_unknown

COLUMNS = {
    "good": ("sen", "good", "sentence_good"),
    "bad": ("wrong_sen", "bad", "sentence_bad"),
    "phenomenon": ("phenomenon", "UID"),
    "language": ("language", "lang"),
}
"""Names that a column may have."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An acceptable sentence and one that differs from it in what makes it unacceptable."""

    good: str
    bad: str
    phenomenon: str
    language: str


@dataclass(kw_only=True)
class MinimalPairs(Analysis):
    """Share of minimal pairs in which the acceptable sentence is the more probable one.

    Rows, for every language, for language and phenomenon (`concept` holds the phenomenon), and overall (mean over
    languages): `pair_accuracy` (ties count half, chance 0.5) and `pair_margin` (loss of the wrong sentence minus that
    of the right one, nats, chance 0), with 95 % intervals over pairs.

    Raises (when measuring):
        FileNotFoundError, ValueError: see `read_pairs`.
    """

    default_name: ClassVar[str] = "minimal_pairs"
    version: ClassVar[int] = 2
    folders: ClassVar[Mapping[str, str]] = MappingProxyType({"pairs": "*/data.tsv"})

    pairs: str
    """Tab-separated file with a column `language`, or a folder with `<language>/data.tsv`."""
    languages: list[str] = field(default_factory=list)
    """Languages as the file or the folder names them; none means all."""
    max_pairs: int = 500
    """Pairs of each language, spread evenly over its part of the file."""
    max_length: int = 512
    """Tokens of context; longer sentences go in windows of this length."""
    batch_tokens: int = 2048
    """Tokens per forward pass, padding included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("max_pairs", "max_length"):
            if getattr(self, option) < 2:
                raise ValueError(f"{self.name}: {option}={getattr(self, option)} must be at least 2")
        self._kept = Kept()

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        stamps = tuple(map(file_stamp, _files(Path(self.pairs))))
        read: dict[str, list[Pair]] = self._kept.get(stamps, lambda: read_pairs(self.pairs, self.languages))
        by_language: list[Row] = []
        for language, every in read.items():
            chosen = np.unique(np.linspace(0, len(every) - 1, min(self.max_pairs, len(every))).round().astype(int))
            pairs = [every[index] for index in chosen.tolist()]
            margin = self._losses(snapshot, [pair.bad for pair in pairs])
            margin -= self._losses(snapshot, [pair.good for pair in pairs])
            phenomena = np.array([pair.phenomenon for pair in pairs])
            by_language += _rows(margin, language, None)
            yield from by_language[-2:]
            for phenomenon in sorted(set(phenomena.tolist())):
                yield from _rows(margin[phenomena == phenomenon], language, phenomenon)
        for metric in ("pair_accuracy", "pair_margin"):
            yield _mean_row([row for row in by_language if row.metric == metric])

    def _losses(self, snapshot: Snapshot, texts: Sequence[str]) -> np.ndarray:
        """Nats of whole sentences, (N,)."""
        return text_losses(
            snapshot.models,
            snapshot.tokenizer,
            content_tokens(snapshot.tokenizer, texts),
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
        )


def read_pairs(path: str | Path, languages: Sequence[str] = ()) -> dict[str, list[Pair]]:
    """Pairs of each language, in the order of the file; languages sorted, or as asked for.

    Raises:
        FileNotFoundError: no such file, or a folder without `<language>/data.tsv`.
        ValueError: a missing column, an empty or identical sentence (naming file and line), or an unknown language.
    """
    root = Path(path)
    files = _files(root)
    if not files:
        raise FileNotFoundError(f"{root}: no minimal pairs; give a .tsv file, or a folder with <language>/data.tsv")
    found: dict[str, list[Pair]] = {}
    for file in files:
        for pair in _read_file(file, file.parent.name if root.is_dir() else None):
            found.setdefault(pair.language, []).append(pair)
    refuse_unknown(root, "language", languages, found)
    if not found:
        raise ValueError(f"{root}: the file holds no pairs")
    return {language: found[language] for language in (languages or sorted(found))}


def _files(root: Path) -> list[Path]:
    return sorted(root.glob("*/data.tsv")) if root.is_dir() else [root] if root.is_file() else []


def _read_file(path: Path, language: str | None) -> Iterator[Pair]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
        columns = {}
        for name, spelt in COLUMNS.items():
            columns[name] = next((column for column in spelt if column in (reader.fieldnames or ())), None)
            if columns[name] is None and not (name == "language" and language is not None):
                raise ValueError(f"{path}: no column {' or '.join(spelt)}; it has {', '.join(reader.fieldnames or ())}")
        for record in reader:
            named = {name: (record[column] or "").strip() for name, column in columns.items() if column is not None}
            pair = Pair(named["good"], named["bad"], named["phenomenon"], language or named["language"])
            if not all((pair.good, pair.bad, pair.phenomenon, pair.language)) or pair.good == pair.bad:
                raise ValueError(
                    f"{path}, line {reader.line_num}: a pair needs two different sentences, a phenomenon and a "
                    f"language, got {pair.good!r}, {pair.bad!r}, {pair.phenomenon!r}, {pair.language!r}"
                )
            yield pair


def _rows(margin: np.ndarray, language: str, phenomenon: str | None) -> Iterator[Row]:
    """Accuracy with Wilson's interval and margin with Student's; no interval from a single pair."""
    for metric, values, chance, is_share in (
        ("pair_accuracy", 0.5 + 0.5 * np.sign(margin), 0.5, True),
        ("pair_margin", margin, 0.0, False),
    ):
        value = float(values.mean())
        low, high = influence_interval(value, values, is_share) if len(values) > 1 else (None, None)
        yield Row(metric=metric, value=value, language=language, concept=phenomenon, chance=chance, low=low, high=high)


def _mean_row(rows: Sequence[Row]) -> Row:
    """Mean over languages, with the interval that theirs make (square-and-add, Zou & Donner, Statistics in Medicine
    2008): one of Wilson's never lacks a width. No interval where a language has none."""
    value = float(np.mean([row.value for row in rows]))
    overall = replace(rows[0], value=value, language=None, low=None, high=None)
    bounds = [
        (row.value - row.low, row.high - row.value) for row in rows if row.low is not None and row.high is not None
    ]
    if len(bounds) < len(rows):
        return overall
    below, above = np.linalg.norm(bounds, axis=0) / len(rows)
    return replace(overall, low=value - below, high=value + above)
