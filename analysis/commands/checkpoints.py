"""The command `checkpoints`: what a source has, before anything is downloaded.

python -m analysis checkpoints --config configs/suites/bloom_560m.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from analysis.checkpoints import Checkpoint, CheckpointSource
from analysis.checkpoints.audit import read_record
from analysis.checkpoints.names import select_steps
from analysis.commands.run import add_arguments, results_folder
from analysis.results import ResultTable

__all__ = ["add_arguments", "run"]


def run(options: Namespace) -> int:
    """Print the table of checkpoints; sizes and commits are looked up, weights are not downloaded."""
    source: CheckpointSource = options.source
    results = results_folder(source, options.results)
    steps = select_steps([snapshot_id.step for snapshot_id in source.ids()], options.steps)
    chosen = [checkpoint for checkpoint in source.checkpoints() if checkpoint.id.step in steps]
    with ThreadPoolExecutor(max_workers=8) as pool:
        described = list(pool.map(lambda checkpoint: _describe(source, checkpoint), chosen))
    sys.stdout.write(checkpoint_table(source, described, results) + "\n")
    return 1 if any(note for _, note in described) else 0


def checkpoint_table(source: CheckpointSource, described: Sequence[tuple[Checkpoint, str]], results: Path) -> str:
    """Step, tokens, name, commit, size, whether cached, and what is known to be wrong."""
    first_with: dict[str, int] = {}
    rows = [("step", "tokens", "name", "commit", "size", "cached", "results", "note")]
    table = ResultTable(results)
    for checkpoint, note in described:
        step = checkpoint.id.step
        record = read_record(results, step)
        notes = [note] if note else []
        for digest in (checkpoint.digest, record.weights_sha256 if record is not None else None):
            if digest is not None:
                earlier = first_with.setdefault(digest, step)
                if earlier != step:
                    notes.append(f"same weights as step {earlier}")
        done = len({name for at, name in table.entries() if at == step})
        rows.append(
            (
                str(step),
                _tokens(checkpoint.id.tokens),
                checkpoint.name,
                checkpoint.marks.get("commit", "")[:10],
                f"{checkpoint.size / 1e9:.2f} GB" if checkpoint.size else "-",
                "yes" if checkpoint.cached else "no",
                str(done),
                "; ".join(dict.fromkeys(notes)),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    size = sum(checkpoint.size or 0 for checkpoint, _ in described) / 1e9
    missing = sum(1 for checkpoint, _ in described if not checkpoint.cached)
    return "\n".join(
        [
            *lines,
            f"{described[0][0].id.run}: {len(described)} checkpoints, {size:.2f} GB, {missing} not on this machine",
        ]
    )


def _describe(source: CheckpointSource, checkpoint: Checkpoint) -> tuple[Checkpoint, str]:
    try:
        return source.describe(checkpoint), ""
    except (OSError, ValueError) as error:
        # The table names the checkpoint already.
        return replace(checkpoint, cached=False), str(error).rpartition(f"{checkpoint.name}: ")[2]


def _tokens(tokens: int | None) -> str:
    if tokens is None:
        return "?"
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if tokens >= size:
            return f"{tokens / size:.4g}{unit}"
    return str(tokens)
