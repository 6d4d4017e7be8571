"""Every analysis on every checkpoint that lacks it: one task a checkpoint, its result files the only state.

A task opens its checkpoint once, measures what is missing and writes one file an analysis. So it may be killed
anywhere, run again, or run twice at the same time (a lock on the checkpoint and a second look decide who measures): the
table ends the same. What fails is named and the others go on. Where tasks run is up to
`analysis.checkpoints.executors`; called by `analysis.commands.run`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from analysis.base import Analysis
from analysis.checkpoints.audit import (
    CheckpointRecord,
    describe_config,
    hash_tensors,
    read_record,
    write_record,
)
from analysis.checkpoints.names import summarize_steps
from analysis.checkpoints.options import computes_bf16, make_ready, release
from analysis.checkpoints.random_networks import Mould, measure_null, missing_null
from analysis.checkpoints.source import Checkpoint, CheckpointSource
from analysis.results import ResultTable
from analysis.snapshots import Snapshot, step_name
from babelscope.errors import one_line

logger = logging.getLogger(__name__)

Split = Literal["checkpoint", "analysis"]
Listener = Callable[[str], None]
"""Told the name of every analysis that a task is done with."""


@dataclass(kw_only=True)
class Outcome:
    """What became of one task."""

    step: int
    label: str
    measured: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Analysis -> one line; "checkpoint" if it could not even be opened."""
    busy: bool = False
    """Another process holds the checkpoint; nothing was done."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One checkpoint and the analyses that it lacked when the sweep was planned. Picklable."""

    source: CheckpointSource
    checkpoint: Checkpoint
    analyses: tuple[Analysis, ...]
    results: Path
    force: bool = False
    """Measure although there are results, of random networks too."""
    null_networks: int = 0
    """Random networks of the checkpoint's configuration that are measured too, where that was not done."""
    split: Split = "checkpoint"
    """Whether this task is all that its checkpoint lacks or a single analysis of it; see `plan`."""

    @property
    def label(self) -> str:
        return self.source.label(self.checkpoint)

    def on_device(self, device: str) -> Task:
        """The same task with the model on `device`."""
        source = replace(self.source, loading=replace(self.source.loading, device=device, devices=[], device_map=None))
        return replace(self, source=source)

    def prefetch(self) -> None:
        """Download the checkpoint if the disk budget has room beside the one in use. Errors wait for `run`."""
        try:
            if not self.source.is_baseline(self.checkpoint) and self.source.fits(self.checkpoint):
                self.source.fetch(self.checkpoint)
        except (OSError, ValueError) as error:
            logger.debug("prefetch of %s: %s", self.label, error)

    def run(self, *, wait: bool = True, listener: Listener | None = None) -> Outcome:
        """Measure; never raises for what is wrong with the checkpoint or an analysis.

        With `wait` false a checkpoint that another process works on is left alone (`Outcome.busy`).
        """
        started = time.perf_counter()
        outcome = Outcome(step=self.checkpoint.id.step, label=self.label)
        try:
            with self._lock(wait):
                try:
                    self._measure(outcome, listener)
                finally:
                    if self.split == "checkpoint":  # else another task may be loading it
                        self.source.finish(self.checkpoint)
        except Timeout:
            outcome.busy = True
        except Exception as error:
            outcome.failed["checkpoint"] = self._told(error)
        outcome.seconds = time.perf_counter() - started
        return outcome

    def _lock(self, wait: bool) -> FileLock:
        folder = self.results / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        name = step_name(self.checkpoint.id.step)
        if self.split == "analysis":
            name += f".{self.analyses[0].name}"
        return FileLock(folder / f"{name}.lock", timeout=-1 if wait else 0)

    def _measure(self, outcome: Outcome, listener: Listener | None) -> None:
        table = ResultTable(self.results)
        missing = missing_analyses(table, self.source, self.checkpoint, self.analyses, force=self.force)
        if not missing and not self.null_networks:
            return
        mould = self._measure_checkpoint(missing, outcome, listener)
        if self.null_networks:
            release()  # so that checkpoint and random network are never in memory together
            marks = self.source.reading
            try:
                done = measure_null(mould, self.analyses, self.results, self.null_networks, marks, force=self.force)
                outcome.measured += done
            except Exception as error:
                outcome.failed["random networks"] = self._told(error)

    def _measure_checkpoint(self, missing: Sequence[Analysis], outcome: Outcome, listener: Listener | None) -> Mould:
        """Measure what is missing; returns what random networks of the checkpoint are drawn from."""
        table, weights = ResultTable(self.results), self._hash_weights()
        with self.source.open(self.checkpoint.id) as snapshot:
            identity = self._record(snapshot, weights)
            for analysis in missing:
                started = time.perf_counter()
                try:
                    extra = {
                        **marks_of(self.source, self.checkpoint),
                        "identity_sha256": identity.weights_sha256,
                        "parameters": snapshot.num_parameters,
                    }
                    measured = list(analysis.measure(snapshot))
                    table.write(self.checkpoint.id, analysis, measured, time.perf_counter() - started, extra)
                    outcome.measured.append(analysis.name)
                except Exception as error:
                    logger.debug("%s: %s failed", self.label, analysis.name, exc_info=True)
                    outcome.failed[analysis.name] = self._told(error)
                if listener is not None:
                    listener(analysis.name)
            return Mould.of(snapshot, partial(make_ready, loading=self.source.loading))

    def _hash_weights(self) -> str:
        """Hash of the stored weights, from the record if the files are still the same. Reads every byte once."""
        known = read_record(self.results, self.checkpoint.id.step)
        if self.source.is_baseline(self.checkpoint):
            return "random seed " + self.checkpoint.marks["seed"]
        path = self.source.fetch(self.checkpoint)
        if known is not None and dict(known.marks) == self.source.marks(self.checkpoint) != {}:
            return known.weights_sha256
        return hash_tensors(self.source.tensors(self.checkpoint, path))

    def _record(self, snapshot: Snapshot, weights: str) -> CheckpointRecord:
        identity = CheckpointRecord(
            step=snapshot.id.step,
            tokens=snapshot.id.tokens,
            name=self.checkpoint.name,
            marks=self.source.marks(self.checkpoint),
            weights_sha256=weights,
            tokenizer_sha256=snapshot.tokenizer_hash,
            config=describe_config(snapshot.model),
            origin=self.source.origin,
        )
        write_record(self.results, identity)
        return identity

    def _told(self, error: Exception) -> str:
        import torch

        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            loading = self.source.loading
            half = "loading.dtype bfloat16, " if all(map(computes_bf16, loading.chosen_devices)) else ""
            return f"out of memory; try a smaller batch_tokens, {half}loading.device_map auto"
        text = one_line(error, width=400)
        return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def marks_of(source: CheckpointSource, checkpoint: Checkpoint) -> dict[str, str | None]:
    """What a result is stamped with and must agree with: the content's marks and how it is read."""
    return {**source.marks(checkpoint), **source.reading}


def missing_analyses(
    table: ResultTable,
    source: CheckpointSource,
    checkpoint: Checkpoint,
    analyses: Sequence[Analysis],
    *,
    force: bool = False,
) -> list[Analysis]:
    """Those without a result for this checkpoint, these settings, this content and this way of reading it.

    A mark that a result lacks (one that was measured live or by an older version) is taken as fulfilled.
    """
    if force:
        return list(analyses)
    marks = marks_of(source, checkpoint)
    missing = []
    for analysis in analyses:
        stamp = table.stamp(checkpoint.id.step, analysis.name)
        done = stamp is not None and table.has(checkpoint.id, analysis)
        if not done or any(key in (stamp or {}) and (stamp or {})[key] != value for key, value in marks.items()):
            missing.append(analysis)
    return missing


def tell_tokens(source: CheckpointSource, results: Path, steps: Sequence[int]) -> None:
    """Let stored results of `steps` say the tokens that the source tells now, e.g. since `naming` was filled in."""
    table, told = ResultTable(results), []
    for checkpoint in source.checkpoints():
        if checkpoint.id.step in steps and table.tell_tokens(checkpoint.id):
            told.append(checkpoint.id.step)
            known = read_record(results, checkpoint.id.step)
            if known is not None:
                write_record(results, replace(known, tokens=checkpoint.id.tokens))
    if told:
        logger.info("%s: tokens seen were told anew for steps %s", results, summarize_steps(told))


def refuse_clash(source: CheckpointSource, results: Path, steps: Sequence[int], *, download: bool) -> None:
    """Two models may be named alike (`A/checkpoint-100`, `B/checkpoint-100`, or two suites of one repository) and would
    share one folder of results.

    Without `download` only checkpoints on this machine are looked at.

    Raises:
        ValueError: `results` holds a step of a source with another origin, or place in it, and other weights.
    """
    for checkpoint in source.checkpoints():
        if checkpoint.id.step not in steps or source.is_baseline(checkpoint) or not (download or checkpoint.cached):
            continue
        known = read_record(results, checkpoint.id.step)
        if known is None:
            continue
        place = source.marks(checkpoint).get("place")  # of a hub source: repository, revision and folder
        if known.origin in ("", source.origin) and known.marks.get("place", place) == place:
            continue
        if hash_tensors(source.tensors(checkpoint, source.fetch(checkpoint))) != known.weights_sha256:
            raise ValueError(
                f"{results}: holds results of {known.origin} ({known.name}); {source.origin} ({checkpoint.name}) has "
                f"other weights at step {checkpoint.id.step}; give one of them another source.run or another results"
            )
        return


def plan(
    source: CheckpointSource,
    analyses: Sequence[Analysis],
    results: Path,
    steps: Sequence[int],
    *,
    force: bool = False,
    split: Split = "checkpoint",
    null_networks: int = 0,
) -> list[Task]:
    """Tasks for the checkpoints of `steps` that lack something; only looks.

    `split` is "checkpoint" (one task loads a checkpoint once) or "analysis" (a task for each analysis: for more devices
    than checkpoints, at the price of loading each checkpoint once an analysis). `null_networks` random networks are
    measured with the first checkpoint of `steps`, once for all.
    """
    table = ResultTable(results)
    tasks: list[Task] = []
    for checkpoint in source.checkpoints():
        if checkpoint.id.step not in steps:
            continue
        missing = missing_analyses(table, source, checkpoint, analyses, force=force)
        drawn, null_networks = null_networks, 0
        if drawn and missing_null(results, checkpoint.id.run, analyses, drawn, source.reading, force=force):
            missing += [one for one in analyses if one.needs_null and one not in missing]
        if not missing:
            continue
        shares = [tuple(missing)] if split == "checkpoint" else [(analysis,) for analysis in missing]
        shared = Task(source=source, checkpoint=checkpoint, analyses=(), results=results, force=force, split=split)
        tasks += [
            replace(shared, analyses=share, null_networks=drawn if any(one.needs_null for one in share) else 0)
            for share in shares
        ]
    return tasks
