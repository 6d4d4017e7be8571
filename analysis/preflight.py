"""Does a list of analyses fit the run that it measures? Asked before the first step, not after days.

Called before anything is written by `train fit` and `train describe` (through the live callback) and by `analysis run`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from analysis.base import Analysis
from analysis.texts import language_column, read_records, translations
from babelscope.files import file_sha256
from babelscope.yaml_text import read_config


def check(
    analyses: Iterable[Analysis],
    *,
    languages: Collection[str] | None = None,
    excluded: Collection[str | Path] | None = None,
    num_units: int | None = None,
) -> None:
    """Refuse what the list cannot measure or should not.

    Args:
        analyses: the list.
        languages: those of the training text; None if unknown.
        excluded: files whose texts training leaves out (`data.exclude`); None if unknown.
        num_units: units of the model; None if unknown.

    Raises:
        FileNotFoundError: a file of an analysis is not there; says which command makes a concept file.
        ValueError: languages that are not trained, concept sentences that are, or K not below the number of units.
    """
    read: dict[Path, frozenset[str]] = {}
    for analysis in analyses:
        # What an analysis reads is told by its options of these names.
        texts, concepts, k, share, only = (
            getattr(analysis, name, None) for name in ("texts", "concepts", "k", "share", "languages")
        )
        named = [str(language) for language in only] if isinstance(only, list | tuple) else []
        ways = {
            Path(str(given)): way
            for given, way in (
                (texts, "give the path of parallel text"),
                (concepts, f"make it with `python -m analysis label --texts TEXTS --out {concepts}`"),
            )
            if given
        }
        for path, way in ways.items():
            if not path.exists():
                raise FileNotFoundError(f"{analysis.name}: {path} does not exist; {way}")
        if languages is not None:
            for path in () if named else ways:
                read[path] = read.get(path) or languages_of(path)
            measured = set(named) or {name for path in ways for name in read[path]}
            if foreign := sorted(measured - set(languages)):
                kept = ", ".join(sorted(measured & set(languages)))
                raise ValueError(
                    f"{analysis.name} measures {', '.join(foreign)}, which the training text does not have; set its "
                    f"languages: [{kept}]"
                )
        if excluded is not None and concepts:
            path, left_out = Path(str(concepts)), {Path(other).resolve() for other in excluded}
            if path.resolve() not in left_out and not _has_copy(path, left_out):
                raise ValueError(
                    f"{analysis.name}: the sentences of {path} would be trained on and measured; add the file to "
                    "data.exclude"
                )
        if num_units is not None and share is None and isinstance(k, int) and k >= num_units:
            raise ValueError(f"{analysis.name}: k is {k} but the model has {num_units} units; lower k or give a share")


def _has_copy(path: Path, others: Iterable[Path]) -> bool:
    """Whether one of the other files has the same content: a run may be measured where its files lie elsewhere."""
    if not path.is_file():
        return False
    digest = file_sha256(path)
    return any(other.is_file() and file_sha256(other) == digest for other in others)


def trained_on(folder: Path) -> tuple[list[str] | None, list[str] | None]:
    """Languages and left-out files of the training text of a run folder, from its `config.yaml`; None where unknown.

    Raises:
        ValueError: the file is not YAML with keys.
    """
    data = (read_config(folder / "config.yaml") or {}).get("data")
    if not isinstance(data, dict):
        return None, None
    return data.get("languages") or None, data.get("exclude") or []


def languages_of(path: Path) -> frozenset[str]:
    """Languages of a file of texts or concepts, long or wide; none of a folder of selfcond files."""
    found: set[str] = set()
    if not path.is_dir():
        for _, record in read_records(path):
            column = language_column(record)
            found.update([str(record[column])] if column else translations(record))
    return frozenset(found)
