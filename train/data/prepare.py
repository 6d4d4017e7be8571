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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from tqdm import tqdm

from train.data.decontamination import read_excluded
from train.data.documents import SPLITS, TextSource
from train.data.packing import Packer, tokenizer_hash
from train.data.records import expand
from train.data.shards import COUNTS, Task, write_shard
from train.data.streams import FORMAT, MANIFEST, PreparedText
from train.files import file_sha256, remove_leftovers, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # heavy, and processes that only tokenise do without it

logger = logging.getLogger(__name__)


def prepare(
    sources: Sequence[TextSource],
    tokenizer: PreTrainedTokenizerBase,
    cache: str | Path,
    *,
    languages: Sequence[str],
    exclude: Sequence[str] = (),
    workers: int = 0,
    progress: bool = True,
) -> PreparedText:
    """Tokenise everything that is not prepared yet; returns the prepared text.

    Args:
        cache: folder under which the prepared text gets its own folder, named by content.
        languages: to prepare, sorted; each must be offered by a source.
        exclude: files with a `text` column whose texts are left out of the training split.
        workers: processes; 0 works in this one (the tokenizer uses threads of its own then).

    Raises:
        ValueError: a language without training text, or anything that a source finds wrong.
    """
    cache = Path(cache)
    key = content_key(sources, tokenizer, cache, languages=languages, exclude=exclude)
    folder = cache / key[:16]
    if (folder / MANIFEST).is_file():
        return PreparedText(folder)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{folder.name}.lock"):
        if not (folder / MANIFEST).is_file():  # another process may have finished it while this one waited
            _prepare_locked(
                folder,
                key,
                sources,
                tokenizer,
                languages=languages,
                exclude=exclude,
                workers=workers,
                progress=progress,
            )
    return PreparedText(folder)


def find_prepared(
    sources: Sequence[TextSource],
    tokenizer: PreTrainedTokenizerBase,
    cache: str | Path,
    *,
    languages: Sequence[str],
    exclude: Sequence[str] = (),
) -> PreparedText | None:
    """What `prepare` with the same arguments has written, or None."""
    folder = Path(cache) / content_key(sources, tokenizer, Path(cache), languages=languages, exclude=exclude)[:16]
    return PreparedText(folder) if (folder / MANIFEST).is_file() else None


def _prepare_locked(
    folder: Path,
    key: str,
    sources: Sequence[TextSource],
    tokenizer: PreTrainedTokenizerBase,
    *,
    languages: Sequence[str],
    exclude: Sequence[str],
    workers: int,
    progress: bool,
) -> None:
    shards_folder = folder / "shards"
    shards_folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(shards_folder)
    packer = Packer.of(tokenizer)
    excluded = read_excluded(exclude)
    pairs = [(source, shard) for source in sources for shard in source.shards(languages)]
    tasks = [
        Task(f"{number:05d}", source, shard, tuple(languages), packer, excluded, shards_folder)
        for number, (source, shard) in enumerate(pairs)
    ]
    todo = [task for task in tasks if not (shards_folder / task.name / "shard.json").is_file()]
    logger.info("preparing %d of %d shards in %s", len(todo), len(tasks), folder)
    with tqdm(
        total=len(tasks),
        initial=len(tasks) - len(todo),
        desc="tokenise",
        unit="shard",
        disable=None if progress else True,
    ) as bar:
        for _ in _run_tasks(todo, workers):
            bar.update()
    manifest = _manifest(folder, key, sources, tokenizer, packer, tasks, languages, exclude)
    if empty := [language for language in languages if not manifest["languages"][language]["train"]["tokens"]]:
        shutil.rmtree(folder)
        raise ValueError(f"no training text for {', '.join(empty)}; add text or take it from data.languages")
    _report_exclusion(manifest["languages"], exclude)
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))


def _report_exclusion(counts: dict, exclude: Sequence[str]) -> None:
    if not exclude:
        return
    found = {language: splits["train"]["excluded"] for language, splits in counts.items()}
    if any(found.values()):
        logger.info("left out of training: %s", ", ".join(f"{language} {n}" for language, n in found.items()))
    else:
        logger.warning("no training text occurs in %s: nothing was excluded", ", ".join(map(str, exclude)))


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
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _manifest(
    folder: Path,
    key: str,
    sources: Sequence[TextSource],
    tokenizer: PreTrainedTokenizerBase,
    packer: Packer,
    tasks: Sequence[Task],
    languages: Sequence[str],
    exclude: Sequence[str],
) -> dict:
    shards = [json.loads((folder / "shards" / task.name / "shard.json").read_text()) for task in tasks]
    totals = {language: {split: dict.fromkeys(COUNTS, 0) for split in SPLITS} for language in languages}
    for shard in shards:
        for language, splits in shard.pop("counts").items():
            for split, row in splits.items():
                for name, value in row.items():
                    totals[language][split][name] += value
    digest = hashlib.sha256(tokenizer_hash(tokenizer).encode())
    for shard in shards:
        for name, entry in sorted(shard["files"].items()):
            digest.update(f"{name} {entry['sha256']}\n".encode())
    paths = [path for source in sources for path in source.files()]
    paths += [path for pattern in exclude for path in expand(pattern)]
    hashes = file_hashes(paths, folder.parent)
    return {
        "format": FORMAT,
        "key": key,
        "fingerprint": digest.hexdigest(),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "vocab_size": packer.vocab_size,
        "separator_id": packer.separator_id,
        "dtype": packer.dtype.str,
        "languages": totals,
        "sources": [source.settings() for source in sources],
        "inputs": [{"path": str(path), "size": path.stat().st_size, "sha256": hashes[path]} for path in paths],
        "shards": shards,
    }


def verify(prepared: PreparedText) -> None:
    """Read every file again and compare its hash with the manifest.

    Raises:
        ValueError: naming the first file that differs.
    """
    for shard in prepared.manifest["shards"]:
        for name, entry in shard["files"].items():
            path = prepared.folder / "shards" / shard["name"] / name
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
            entry = known[name] = [*stamp, file_sha256(path)]
            changed = True
        hashes[path] = entry[2]
    if changed:
        write_text(store, json.dumps(known))
    return hashes
