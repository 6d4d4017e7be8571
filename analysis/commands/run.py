"""The command `run`: a source and a list of analyses from a config file, measured post hoc.

python -m analysis run --config configs/suites/bloom_560m.yaml
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser, Namespace
from tqdm import tqdm

from analysis.base import Analysis, subclasses
from analysis.checkpoints import CheckpointSource, RunFolder
from analysis.checkpoints.audit import write_summary
from analysis.checkpoints.executors import Executor, Inline
from analysis.checkpoints.names import select_steps
from analysis.checkpoints.random_networks import NUM_NETWORKS
from analysis.checkpoints.sweep import Outcome, Split, Task, plan, refuse_clash, tell_tokens
from analysis.preflight import check, trained_on
from analysis.results import ResultTable

logger = logging.getLogger(__name__)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `run`; `checkpoints` and `steer` take the same files and use what concerns them."""
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
    parser.add_argument(
        "--null_networks", type=int, default=NUM_NETWORKS, help="random networks measured once as the null; 0: none"
    )
    parser.add_argument(
        "--force", action=ActionYesNo, default=False, help="measure again what is already there, random networks too"
    )
    parser.add_argument("--dry_run", action=ActionYesNo, default=False, help="say what would be measured, and stop")


def run(options: Namespace) -> int:
    """Measure what is missing; 0, or 1 if something failed (and is named)."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar for every checkpoint's weights would break the bar of the sweep
    source: CheckpointSource = options.source
    analyses = read_analyses(options.analyses)
    results = results_folder(source, options.results)
    steps = select_steps([snapshot_id.step for snapshot_id in source.ids()], options.steps)
    refuse_clash(source, results, steps, download=not options.dry_run)
    languages, excluded = trained_on(source.path) if isinstance(source, RunFolder) else (None, None)
    check(analyses, languages=languages, excluded=excluded)
    how = {name: options[name] for name in ("force", "split", "null_networks")}
    if options.dry_run:
        how["split"] = "checkpoint"  # a line for each
        sys.stdout.write(describe_plan(plan(source, analyses, results, steps, **how), results) + "\n")
        return 0
    outcomes = sweep(source, analyses, results, steps, options.executor, **how)
    sys.stdout.write(summarize(outcomes, source, steps, results) + "\n")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def sweep(
    source: CheckpointSource,
    analyses: Sequence[Analysis],
    results: Path,
    steps: Sequence[int],
    executor: Executor,
    **how: Any,
) -> list[Outcome]:
    """Run all missing tasks with a progress bar, then write identity.json; `how` are options of `plan`."""
    lock_bars_by_thread()
    tell_tokens(source, results, steps)
    tasks = plan(source, analyses, results, steps, **how)
    outcomes: list[Outcome] = []
    left = Counter(task.checkpoint.id.step for task in tasks)
    for checkpoint in source.checkpoints():
        if checkpoint.id.step in steps and not left[checkpoint.id.step]:
            source.finish(checkpoint)
    planned = {task.checkpoint.id.step: len(task.analyses) for task in tasks}
    ended = 0
    with tqdm(total=sum(len(task.analyses) for task in tasks), unit="analysis", desc=source.ids()[0].run) as bar:

        def listener(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        for outcome in executor.run(tasks, listener):
            outcomes.append(outcome)
            left[outcome.step] -= 1
            if how.get("split") == "analysis" and not left[outcome.step]:  # a task of a whole checkpoint does it itself
                source.finish(next(one for one in source.checkpoints() if one.id.step == outcome.step))
            ended += planned[outcome.step]
            bar.update(max(0, ended - bar.n))
            for name, why in outcome.failed.items():
                bar.write(f"failed: {_named(outcome, name, why)}", file=sys.stderr)
    if failed_altogether(outcomes, results):
        shutil.rmtree(results / ".locks", ignore_errors=True)  # nothing was measured, so nothing is left behind
        with suppress(OSError):
            results.rmdir()
        return outcomes
    failed = {o.step: o.failed["checkpoint"] for o in outcomes if "checkpoint" in o.failed}
    every = [snapshot_id.step for snapshot_id in source.ids()]
    for line in write_summary(results, source.ids()[0].run, every, failed):
        logger.warning("%s", line)
    return outcomes


def failed_altogether(outcomes: Sequence[Outcome], results: Path) -> bool:
    """Whether no checkpoint could be opened, now or earlier."""
    opened = any("checkpoint" not in outcome.failed for outcome in outcomes)
    return bool(outcomes) and not opened and not any(ResultTable(results).entries())


def lock_bars_by_thread() -> None:
    """Give all bars, those of libraries too, a lock that forked processes do not share.

    tqdm's own is shared with every forked process, and one that is killed while it draws would stop all others.
    """
    lock = threading.RLock()
    for bar in (tqdm, *subclasses(tqdm)):
        bar.set_lock(lock)


def read_analyses(given: list[dict] | str) -> list[Analysis]:
    """The list itself, or the one in the file that `given` names."""
    from analysis.measures import build_analyses, load_analyses  # numba and transformers take seconds to import

    return load_analyses(given) if isinstance(given, str) else build_analyses(given)


def results_folder(source: CheckpointSource, given: Path | None) -> Path:
    if given is not None:
        return given
    if isinstance(source, RunFolder):
        return source.path / "results"
    return Path("results") / source.ids()[0].run


def describe_plan(tasks: Sequence[Task], results: Path) -> str:
    """What a sweep would do, a line for each checkpoint."""
    lines = [
        f"{task.label}: {', '.join(analysis.name for analysis in task.analyses)}"
        + (f", and {task.null_networks} random networks" if task.null_networks else "")
        for task in tasks
    ]
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


def _named(outcome: Outcome, name: str, why: str) -> str:
    """One line that names checkpoint, analysis and reason; reasons of the loader name the checkpoint themselves."""
    if name == "checkpoint":
        return why if why.startswith(outcome.label) else f"{outcome.label}: {why}"
    return f"{outcome.label}: {name}: {why}"
