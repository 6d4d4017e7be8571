"""Tokenise text once into streams of token ids on disk (the layout is drawn in `train.data.streams`).

The folder's name is a hash of everything that decides its content: the inputs' bytes, how they are read, the languages,
the tokenizer and the excluded texts. So a changed input never meets stale tokens, and an unchanged one costs a lookup.
Shards are independent: they may be written by several processes, each is written beside and renamed when it is
complete and on disk, and a second start does only those that are missing. The manifest comes last; without it the
folder counts as unfinished. A lock keeps two processes (or nodes on one file system) from doing the same work.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import multiprocessing
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from tqdm import tqdm

from babelscope.files import file_sha256, remove_leftovers, write_text
from babelscope.records import Clone
from train.data.clones import as_json, make_clones
from train.data.decontamination import NGRAM, RULES, excluded_files, read_exclusion
from train.data.documents import SPLITS, TextSource
from train.data.packing import Packer, tokenizer_hash
from train.data.shards import COUNTS, Task, write_shard
from train.data.streams import FORMAT, MANIFEST, PreparedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # heavy, and processes that only tokenise do without it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the tokens of prepared text."""

    sources: Sequence[TextSource]
    tokenizer: PreTrainedTokenizerBase
    languages: Sequence[str]
    """To prepare, sorted; each must be offered by a source."""
    exclude: Sequence[str] = ()
    """Files with a `text` column; what `train.data.decontamination` finds of them is left out of the training split."""
    exclude_ngrams: int = NGRAM
    clones: Mapping[str, str] = field(default_factory=dict)
    """Original of each cloned language; see `train.data.clones`."""

    def made_clones(self) -> dict[str, Clone]:
        return make_clones(self.clones, self.languages, len(self.tokenizer))

    def files(self) -> tuple[list[Path], list[Path]]:
        """Local files of the sources, and those that are excluded."""
        read = [path for source in self.sources for path in source.files()]
        return read, excluded_files(self.exclude)

    def key(self, cache: Path) -> str:
        """Hash of it all; where files lie does not matter."""
        read, excluded = self.files()
        hashes = file_hashes([*read, *excluded], cache)
        identity = {
            "format": FORMAT,
            "sources": [
                source.settings() | {"sha256": [hashes[path] for path in source.files()]} for source in self.sources
            ],
            "languages": list(self.languages),
            "tokenizer": tokenizer_hash(self.tokenizer),
            "exclude": [self.exclude_ngrams, *sorted(hashes[path] for path in excluded)] if excluded else [],
            "clones": as_json(self.made_clones()),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def prepare(recipe: Recipe, cache: str | Path, *, workers: int = 0) -> PreparedText:
    """Tokenise everything that is not prepared yet; returns the prepared text.

    Args:
        cache: folder under which the prepared text gets its own folder, named by content.
        workers: processes; 0 works in this one (the tokenizer uses threads of its own then).

    Raises:
        ValueError: a language without training text, or anything that a source finds wrong.
        ChildProcessError: a process was killed.
    """
    cache = Path(cache)
    key = recipe.key(cache)
    folder = cache / key[:16]
    if (folder / MANIFEST).is_file():
        return PreparedText(folder)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{folder.name}.lock"):
        if not (folder / MANIFEST).is_file():  # another process may have finished it while this one waited
            _prepare_locked(folder, key, recipe, workers=workers)
    return PreparedText(folder)


def find_prepared(recipe: Recipe, cache: str | Path) -> PreparedText | None:
    """What `prepare` with the same recipe has written, or None."""
    folder = Path(cache) / recipe.key(Path(cache))[:16]
    return PreparedText(folder) if (folder / MANIFEST).is_file() else None


def _prepare_locked(folder: Path, key: str, recipe: Recipe, *, workers: int) -> None:
    shards_folder = folder / "shards"
    shards_folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(shards_folder)
    clones = recipe.made_clones()
    packer = Packer.of(recipe.tokenizer, num_clones=len(clones))
    exclusion = read_exclusion(recipe.exclude, recipe.exclude_ngrams)
    pairs = [(source, shard) for source in recipe.sources for shard in source.shards(recipe.languages)]
    tasks = [
        Task(f"{number:05d}", source, shard, tuple(recipe.languages), packer, exclusion, clones, shards_folder)
        for number, (source, shard) in enumerate(pairs)
    ]
    todo = [task for task in tasks if not (shards_folder / task.name / "shard.json").is_file()]
    logger.info("preparing %d of %d shards in %s", len(todo), len(tasks), folder)
    with tqdm(
        total=len(tasks),
        initial=len(tasks) - len(todo),
        desc="tokenise",
        unit="shard",
        disable=None,  # shown on a terminal
    ) as bar:
        for _ in _run_tasks(todo, workers):
            bar.update()
    manifest = _manifest(folder, key, recipe, packer, tasks)
    empty = [language for language, splits in manifest["languages"].items() if not splits["train"]["tokens"]]
    if empty:
        shutil.rmtree(folder)
        raise ValueError(f"no training text for {', '.join(empty)}; add text or take it from data.languages")
    _report_exclusion(manifest["languages"], recipe.exclude)
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))


def _report_exclusion(counts: dict, exclude: Sequence[str]) -> None:
    """Say per language what each rule left out."""
    if not exclude:
        return
    rows = {language: splits["train"] for language, splits in counts.items()}
    if not any(row["excluded"] for row in rows.values()):
        logger.warning("no training text occurs in %s: nothing was excluded", ", ".join(map(str, exclude)))
        return
    for language, row in rows.items():
        found = ", ".join(f"{row[f'excluded_{rule}']} by {rule}" for rule in RULES)
        logger.info(
            "%s: %d of %d documents left out of training (%s)",
            language,
            row["excluded"],
            row["excluded"] + row["documents"],
            found,
        )


def _run_tasks(tasks: Sequence[Task], workers: int) -> Iterator[None]:
    if workers <= 0:
        for task in tasks:
            write_shard(task)
            yield
        return
    context = multiprocessing.get_context("spawn")  # threads of `tokenizers` do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from pool.map(write_shard, tasks)
        except BrokenProcessPool:
            raise ChildProcessError(
                f"one of {workers} processes that tokenise was killed (out of memory?); what is done is kept: start "
                "again, with a smaller data.prepare_workers if memory was short"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _manifest(folder: Path, key: str, recipe: Recipe, packer: Packer, tasks: Sequence[Task]) -> dict:
    shards = [json.loads((folder / "shards" / task.name / "shard.json").read_text()) for task in tasks]
    clones = recipe.made_clones()
    languages = sorted([*recipe.languages, *clones])
    totals = {language: {split: dict.fromkeys(COUNTS, 0) for split in SPLITS} for language in languages}
    for shard in shards:
        for language, splits in shard.pop("counts").items():
            for split, row in splits.items():
                for name, value in row.items():
                    totals[language][split][name] += value
    digest = hashlib.sha256(tokenizer_hash(recipe.tokenizer).encode())
    for shard in shards:
        for name, entry in sorted(shard["files"].items()):
            digest.update(f"{name} {entry['sha256']}\n".encode())
    read, excluded = recipe.files()
    hashes = file_hashes([*read, *excluded], folder.parent)
    return {
        "format": FORMAT,
        "key": key,
        "fingerprint": digest.hexdigest(),
        "tokenizer_sha256": tokenizer_hash(recipe.tokenizer),
        "vocab_size": packer.vocab_size,
        "separator_id": packer.separator_id,
        "dtype": packer.dtype.str,
        "clones": as_json(clones),
        "languages": totals,
        "sources": [source.settings() for source in recipe.sources],
        "inputs": [
            {"path": str(path), "size": path.stat().st_size, "sha256": hashes[path]} for path in (*read, *excluded)
        ],
        "shards": shards,
    }


def verify(prepared: PreparedText) -> None:
    """Read every file again and compare its hash with the manifest.

    Raises:
        ValueError: naming the first file that differs.
    """
    for path, entry in prepared.stored():
        if file_sha256(path) != entry["sha256"]:
            raise ValueError(
                f"{path}: differs from its hash in the manifest; remove {prepared.folder} and prepare again"
            )


def format_prepared(prepared: PreparedText) -> str:
    """A plain table: one line per language and split."""
    lines = [f"{'language':<10}{'split':<7}{'documents':>11}{'tokens':>14}{'bytes':>15}{'excluded':>10}"]
    for language, split in itertools.product(prepared.languages, SPLITS):
        row = prepared.counts(language, split)
        lines.append(
            f"{language:<10}{split:<7}{row['documents']:>11,}{row['tokens']:>14,}{row['bytes']:>15,}"
            f"{row['excluded']:>10,}"
        )
    return "\n".join(lines)


def file_hashes(paths: Sequence[Path], cache: Path) -> dict[Path, str]:
    """sha256 of each file; kept in the cache folder, so a file of the same size and time is not read again."""
    store = cache / "sha256.json"
    try:
        content = json.loads(store.read_text())
    except (OSError, ValueError, RecursionError):
        content = {}
    known: dict[str, list] = content if isinstance(content, dict) else {}  # a memo: what cannot be read is made again
    hashes, changed = {}, False
    for path in paths:
        stat = path.stat()
        name, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        entry = known.get(name)
        if not isinstance(entry, list) or len(entry) != 3 or entry[:2] != stamp or not isinstance(entry[2], str):
            entry = known[name] = [*stamp, file_sha256(path)]
            changed = True
        hashes[path] = entry[2]
    if changed:
        with suppress(OSError):  # a cache that cannot be written, made by somebody else
            write_text(store, json.dumps(known))
    return hashes
