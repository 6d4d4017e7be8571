"""Tokenise one shard of a source into its own folder, complete or not at all.

This is what runs in the processes of `train.data.prepare`; it imports neither torch nor transformers, so they start
fast.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from babelscope.files import file_sha256, new_folder, write_text
from babelscope.records import Clone
from train.data.clones import dealt_to
from train.data.decontamination import RULES, Exclusion
from train.data.documents import Document, Shard, TextSource
from train.data.packing import Packer
from train.data.streams import file_name

BATCH_DOCUMENTS = 2048
"""Documents encoded together: enough to keep the threads of `tokenizers` busy."""


COUNTS = ("tokens", "bytes", "documents", "excluded", *(f"excluded_{rule}" for rule in RULES))
"""What is counted per language and split; tokens include separators, `excluded` is the sum of all rules."""


@dataclass(frozen=True)
class Task:
    """One shard of one source, to be written to `folder`."""

    name: str
    source: TextSource
    shard: Shard
    languages: tuple[str, ...]
    packer: Packer
    exclusion: Exclusion
    clones: Mapping[str, Clone]
    folder: Path


def write_shard(task: Task) -> None:
    """Tokenise one shard into its folder: complete or not there at all."""
    with new_folder(task.folder / task.name) as temporary:
        counts: dict[str, dict[str, dict[str, int]]] = {}
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {}

            def append(name: str, data: bytes) -> None:
                if name not in files:
                    files[name] = stack.enter_context((temporary / name).open("wb"))
                files[name].write(data)

            documents = task.source.read(task.shard, task.languages)
            while batch := list(itertools.islice(documents, BATCH_DOCUMENTS)):
                _append_batch(task, batch, counts, append)
        entries = {path.name: _file_entry(path, task.packer) for path in sorted(temporary.iterdir())}
        content = {"name": task.name, "counts": counts, "files": entries}
        write_text(temporary / "shard.json", json.dumps(content, indent=1))


def _append_batch(
    task: Task,
    batch: Sequence[Document],
    counts: dict[str, dict[str, dict[str, int]]],
    append: Callable[[str, bytes], None],
) -> None:
    groups: dict[tuple[str, str], list[str]] = {}
    for document in batch:
        rule = task.exclusion.rule(document) if document.split == "train" else None
        for language in dealt_to(document, task.clones):
            row = counts.setdefault(language, {}).setdefault(document.split, dict.fromkeys(COUNTS, 0))
            if rule is not None:
                row["excluded"] += 1
                row[f"excluded_{rule}"] += 1
            else:
                groups.setdefault((language, document.split), []).append(document.text)
    for (language, split), texts in groups.items():
        shift = task.clones[language].shift if language in task.clones else 0
        packed = task.packer.pack(texts, count_bytes=split != "train", shift=shift)
        append(file_name(language, split, "tokens"), packed.tokens.tobytes())
        if packed.token_bytes is not None:
            append(file_name(language, split, "bytes"), packed.token_bytes.tobytes())
        row = counts[language][split]
        row["tokens"] += len(packed.tokens)
        row["bytes"] += packed.num_bytes
        row["documents"] += packed.num_documents


def _file_entry(path: Path, packer: Packer) -> dict:
    width = packer.dtype.itemsize if path.name.endswith(".tokens") else 4
    size = path.stat().st_size
    return {"items": size // width, "size": size, "sha256": file_sha256(path)}
