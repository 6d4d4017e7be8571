"""The commands `run` and `checkpoints`: a source and a list of analyses from a config file, measured post hoc.

python -m analysis checkpoints --config configs/suites/bloom_560m.yaml     what there is, nothing is downloaded
python -m analysis run --config configs/suites/bloom_560m.yaml             measure what is missing
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from jsonargparse import ActionYesNo, ArgumentParser, Namespace
from tqdm import tqdm

from analysis.base import Analysis
from analysis.checkpoints.audit import read_record, write_summary
from analysis.checkpoints.executors import Executor, Inline
from analysis.checkpoints.names import select_steps
from analysis.checkpoints.sources import Checkpoint, CheckpointSource, RunFolder
from analysis.checkpoints.sweep import Outcome, Split, Task, plan
from analysis.measures import build_analyses, load_analyses
from analysis.results import ResultTable

logger = logging.getLogger(__name__)


def add_run_arguments(parser: ArgumentParser) -> None:
    """The options of `run`; `checkpoints` takes the same files and uses what concerns it."""
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_argument("--source", type=CheckpointSource, required=True, help="where checkpoints come from")
    parser.add_argument("--steps", type=int | list[int] | str, default="all", help="all, last, 1000:100000, 0,1000 ...")
    parser.add_argument(
        "--results", type=Path | None, default=None, help="default: <run folder>/results, or results/<run>"
    )
    parser.add_argument(
        "--analyses", type=list[dict] | str, default="configs/analyses/default.yaml", help="list, or its file"
    )
    parser.add_argument("--executor", type=Executor, default=Inline(), help="Inline, ProcessPool or Submitit")
    parser.add_argument(
        "--split", type=Split, default="checkpoint", help="a task is a checkpoint, or one analysis of it"
    )
    parser.add_argument("--force", action=ActionYesNo, default=False, help="measure again what is already there")
    parser.add_argument("--dry_run", action=ActionYesNo, default=False, help="say what would be measured, and stop")


def run(options: Namespace) -> int:
    """Measure what is missing; 0, or 1 if something failed (and is named)."""
    source: CheckpointSource = options.source
    analyses = read_analyses(options.analyses)
    results = results_folder(source, options.results)
    steps = select_steps([snapshot_id.step for snapshot_id in source.ids()], options.steps)
    if options.dry_run:
        sys.stdout.write(describe_plan(plan(source, analyses, results, steps, force=options.force), results) + "\n")
        return 0
    outcomes = sweep(source, analyses, results, steps, options.executor, force=options.force, split=options.split)
    sys.stdout.write(summarize(outcomes, source, steps, results) + "\n")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def sweep(
    source: CheckpointSource,
    analyses: Sequence[Analysis],
    results: Path,
    steps: Sequence[int],
    executor: Executor,
    *,
    force: bool = False,
    split: Split = "checkpoint",
) -> list[Outcome]:
    """Run all missing tasks with a progress bar, then write identity.json."""
    tasks = plan(source, analyses, results, steps, force=force, split=split)
    outcomes: list[Outcome] = []
    planned = {task.checkpoint.id.step: len(task.analyses) for task in tasks}
    ended = 0
    with tqdm(total=sum(len(task.analyses) for task in tasks), unit="analysis", desc=source.ids()[0].run) as bar:

        def listener(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        for outcome in executor.run(tasks, listener):
            outcomes.append(outcome)
            ended += planned[outcome.step] if split == "checkpoint" else 1
            bar.update(max(0, ended - bar.n))
            for name, why in outcome.failed.items():
                bar.write(f"failed: {_named(outcome, name, why)}", file=sys.stderr)
    failed = {o.step: o.failed["checkpoint"] for o in outcomes if "checkpoint" in o.failed}
    every = [snapshot_id.step for snapshot_id in source.ids()]
    for line in write_summary(results, source.ids()[0].run, every, failed):
        logger.warning("%s", line)
    return outcomes


def checkpoints(options: Namespace) -> int:
    """Print the table of checkpoints; sizes and commits are looked up, weights are not downloaded."""
    source: CheckpointSource = options.source
    results = results_folder(source, options.results)
    steps = select_steps([snapshot_id.step for snapshot_id in source.ids()], options.steps)
    chosen = [checkpoint for checkpoint in source.checkpoints() if checkpoint.id.step in steps]
    with ThreadPoolExecutor(max_workers=8) as pool:
        described = list(pool.map(lambda checkpoint: _describe(source, checkpoint), chosen))
    sys.stdout.write(checkpoint_table(source, described, results) + "\n")
    return 1 if any(note for _, note in described) else 0


def read_analyses(given: list[dict] | str) -> list[Analysis]:
    """The list itself, or the one in the file that `given` names."""
    return load_analyses(given) if isinstance(given, str) else build_analyses(given)


def results_folder(source: CheckpointSource, given: Path | None) -> Path:
    if given is not None:
        return given
    if isinstance(source, RunFolder):
        return source.path / "results"
    return Path("results") / source.ids()[0].run


def describe_plan(tasks: Sequence[Task], results: Path) -> str:
    """What a sweep would do, a line for each checkpoint."""
    lines = [f"{task.label}: {', '.join(analysis.name for analysis in task.analyses)}" for task in tasks]
    return "\n".join([*lines, f"{len(tasks)} checkpoints to measure; results in {results}"])


def summarize(outcomes: Sequence[Outcome], source: CheckpointSource, steps: Sequence[int], results: Path) -> str:
    """The closing lines of a sweep."""
    measured = sum(len(outcome.measured) for outcome in outcomes)
    failures = [_named(outcome, name, why) for outcome in outcomes for name, why in outcome.failed.items()]
    run_name = source.ids()[0].run
    lines = [f"{run_name}: {len(steps)} checkpoints, {measured} results measured now, {len(failures)} failures"]
    lines += [f"failed: {failure}" for failure in failures]
    if failures:
        lines.append("run the same command again to measure only what is missing")
    return "\n".join([*lines, f"results: {results}"])


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


def _named(outcome: Outcome, name: str, why: str) -> str:
    """One line that names checkpoint, analysis and reason; reasons of the loader name the checkpoint themselves."""
    if name == "checkpoint":
        return why if why.startswith(outcome.label) else f"{outcome.label}: {why}"
    return f"{outcome.label}: {name}: {why}"
