"""Writes the corpus folder (drawn in build.py): first beside its place, then moved there in one step."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from babelscope.files import file_sha256, new_folder
from data.corpus.packages import version_of
from data.corpus.pins import PINS
from data.corpus.sources import SOURCES

SPLITS = ("train", "valid", "test")


class Row(NamedTuple):
    """One segment in all its languages."""

    uid: str
    """source/doc/key. The column is not called `id`, which is a language."""
    source: str
    doc: str
    split: str
    texts: dict[str, str]


def check_target(out: Path, overwrite: bool) -> None:
    """Raises `ValueError` if `out` holds something that must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "manifest.json").is_file() or not (out / "aligned.parquet").is_file():
        raise ValueError(f"{out}: exists and is no corpus; choose another folder")
    if not overwrite:
        raise ValueError(f"{out}: already holds a corpus; replace it with --overwrite or choose another folder")


def write_corpus(
    out: Path,
    rows: Sequence[Row],
    drops: Mapping[tuple[str, str], Mapping[str, int]],
    languages: Sequence[str],
    packages: Mapping[str, Path],
) -> None:
    """Writes all files of the corpus; an earlier corpus in `out` is replaced.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(f"{out}: no segment has a translation; nothing is written")
    with new_folder(out) as scratch:
        (scratch / "text").mkdir()
        pq.write_table(_aligned_table(rows, languages), scratch / "aligned.parquet", compression="zstd")
        counts = {language: _write_texts(scratch / "text", rows, language) for language in languages}
        _write_json(scratch / "manifest.json", [_manifest_entry(name, path) for name, path in packages.items()])
        stats = {
            "rows": Counter(row.split for row in rows),
            "per_language": counts,
            "drops": {f"{source}:{language}": reasons for (source, language), reasons in drops.items()},
            "licenses": {name: SOURCES[name].license for name in dict.fromkeys(row.source for row in rows)},
        }
        _write_json(scratch / "stats.json", stats)


def _aligned_table(rows: Sequence[Row], languages: Sequence[str]) -> pa.Table:
    keys = {
        name: pa.array((getattr(row, name) for row in rows), pa.string()) for name in ("uid", "source", "doc", "split")
    }
    sizes = {"n_langs": pa.array((len(row.texts) for row in rows), pa.int16())}
    texts = {language: pa.array((row.texts.get(language) for row in rows), pa.string()) for language in languages}
    return pa.table(keys | sizes | texts)


def _write_texts(folder: Path, rows: Iterable[Row], language: str) -> dict[str, dict[str, int]]:
    """Writes the files of one language, each text once; counts per source."""
    seen: set[str] = set()
    counts: dict[str, dict[str, int]] = {}
    with ExitStack() as stack:
        files = {
            split: stack.enter_context((folder / f"{language}.{split}.jsonl").open("w", encoding="utf-8"))
            for split in SPLITS
        }
        for row in rows:
            text = row.texts.get(language)
            if text is None or text in seen:
                continue
            seen.add(text)
            record = {"uid": row.uid, "lang": language, "source": row.source, "text": text}
            files[row.split].write(json.dumps(record, ensure_ascii=False) + "\n")
            count = counts.setdefault(row.source, dict.fromkeys(("segments", "words", "chars", "bytes"), 0))
            count["segments"] += 1
            count["words"] += len(text.split())
            count["chars"] += len(text)
            count["bytes"] += len(text.encode())
    return counts


def _manifest_entry(name: str, path: Path) -> dict[str, object]:
    version = version_of(path, PINS[name])
    return {"package": name, "version": version, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
