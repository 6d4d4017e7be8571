"""What decides the content of prepared text, as one hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from train.data.documents import TextSource
from train.data.packing import canonical_json
from train.data.records import expand
from train.data.shards import write_json
from train.data.streams import FORMAT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def content_key(
    sources: Sequence[TextSource],
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    *,
    languages: Sequence[str],
    exclude: Sequence[str],
) -> str:
    """Hash of everything that decides the tokens; where files lie does not matter."""
    files = [path for source in sources for path in source.files()]
    excluded = [path for pattern in exclude for path in expand(pattern)]
    hashes = file_hashes([*files, *excluded], cache)
    identity = {
        "format": FORMAT,
        "sources": [source.settings() | {"sha256": [hashes[path] for path in source.files()]} for source in sources],
        "languages": list(languages),
        "tokenizer": tokenizer_hash(tokenizer),
        "exclude": sorted(hashes[path] for path in excluded),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the fast tokenizer's definition."""
    return hashlib.sha256(canonical_json(tokenizer).encode()).hexdigest()


def file_hashes(paths: Sequence[Path], cache: Path) -> dict[Path, str]:
    """sha256 of each file; kept in the cache folder, so a file of the same size and time is not read again."""
    store = cache / "sha256.json"
    try:
        known: dict[str, list] = json.loads(store.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        known = {}
    hashes, changed = {}, False
    for path in paths:
        stat = path.stat()
        name, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        entry = known.get(name)
        if entry is None or entry[:2] != stamp:
            with path.open("rb") as file:
                entry = known[name] = [*stamp, hashlib.file_digest(file, "sha256").hexdigest()]
            changed = True
        hashes[path] = entry[2]
    if changed:
        cache.mkdir(parents=True, exist_ok=True)
        write_json(store, known)
    return hashes
