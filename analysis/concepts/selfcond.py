"""Concept files of ml-selfcond (Suau et al., ICML 2022), read.

    <folder>/<language>/<group>/<concept>.json
        {"concept": ..., "group": ..., "source": ..., "language": ...,
         "sentences": {"positive": [...], "negative": [...]}, "uids": {"positive": [...], "negative": [...]}}

The published files have neither `language` nor `uids`. The language is then the first folder below the one given, and a
sentence is known by the hash of its text. Published file names carry a sense ("house-1_14_00"); the field `concept` is
what counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SIDES = ("positive", "negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledText:
    """One sentence with its label for one concept."""

    concept: str
    language: str
    key: str
    """The same for translations of each other."""
    text: str
    positive: bool
    split: str | None = None
    match: str | None = None
    """Key of the positive for which a negative was chosen."""
    weak: bool = False
    """A positive whose translation may have lost the concept."""
    half: int | None = None
    """0 or 1, the same for all concepts and languages."""
    group: str | None = None
    """Concepts of one group depend on each other."""
    where: str
    """Line or file, for error messages."""


def read_selfcond(path: str | Path) -> Iterator[LabelledText]:
    """Sentences of one JSON file, or of all below a folder in sorted order.

    Raises:
        FileNotFoundError: no such file, or no JSON files in the folder.
        ValueError: a file that is not of this format, or whose language is unknown (naming the file).
    """
    path = Path(path)
    if path.is_file():
        yield from _read_file(path, None)
        return
    files = sorted(path.rglob("*.json")) if path.is_dir() else []
    if not files:
        raise FileNotFoundError(f"{path}: no concept files; expected <language>/<group>/<concept>.json below it")
    for file in files:
        above = file.relative_to(path).parts[:-1]
        yield from _read_file(file, above[0] if above else None)


def _read_file(path: Path, folder: str | None) -> Iterator[LabelledText]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        concept, sentences = content["concept"], content["sentences"]
        sides = {side: list(sentences[side]) for side in SIDES}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected concept and sentences with positive and negative lists, as ml-selfcond writes: {error!r}"
        ) from None
    language = content.get("language") or folder
    if not isinstance(concept, str) or not isinstance(language, str):
        raise ValueError(f"{path}: no language: give a field 'language' or put the file below a folder named by it")
    uids = content.get("uids") or {}
    for side, texts in sides.items():
        keys = uids.get(side) or [None] * len(texts)
        if len(keys) != len(texts):
            raise ValueError(f"{path}: {len(texts)} {side} sentences but {len(keys)} uids")
        for number, (text, key) in enumerate(zip(texts, keys, strict=True)):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{path}: {side} sentence {number} is {text!r}, expected a text")
            yield LabelledText(
                concept=concept,
                language=language,
                key=str(key) if key is not None else hashlib.sha256(text.encode()).hexdigest()[:16],
                text=text,
                positive=side == "positive",
                where=path.name,
            )
