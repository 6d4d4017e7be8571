"""Tokenise text once into streams of token ids on disk (the layout is drawn in `train.data.streams`).

The folder's name is a hash of everything that decides its content: the inputs' bytes, how they are read, the languages,
the tokenizer and the excluded texts. So a changed input never meets stale tokens, and an unchanged one costs a lookup.
Shards are independent: they may be written by several processes, each is written beside and renamed when it is
complete and on disk, and a second start does only those that are missing. The manifest comes last; without it the
folder counts as unfinished. A lock keeps two processes (or nodes on one file system) from doing the same work.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import multiprocessing
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from tqdm import tqdm

from train.data.decontamination import read_excluded
from train.data.documents import SPLITS, TextSource
from train.data.identity import content_key, file_hashes, tokenizer_hash
from train.data.packing import Packer
from train.data.records import expand
from train.data.shards import COUNTS, Task, write_json, write_shard
from train.data.streams import FORMAT, MANIFEST, PreparedText

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
    for torso in shards_folder.glob(".*"):  # of a process that was killed; nobody else holds the lock
        shutil.rmtree(torso)
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
    write_json(folder / MANIFEST, manifest)


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
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m train prepare`."""
    parser.description = "Tokenise the text of a training config into memory-mapped blocks; resumes where it stopped."
    parser.add_argument("--config", action="append", required=True, help="training config with a `data:` section")
    parser.add_argument("--languages", nargs="+", help="only these")
    parser.add_argument("--workers", type=int, help="processes (default: data.prepare_workers)")
    parser.add_argument("--verify", action="store_true", help="read everything again and check its hash")


def run(args: argparse.Namespace) -> None:
    """Prepare, and write the counts to stdout."""
    from train.data.options import read_options  # it knows the data module, which imports this file

    options = read_options(args)
    if args.workers is not None:
        options.prepare_workers = args.workers
    options.prepare_data()
    options.setup()
    if args.verify:
        verify(options.prepared_text)
    sys.stdout.write(f"{format_prepared(options.prepared_text)}\n{options.prepared_text.folder}\n")
