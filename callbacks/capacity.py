"""The capacity experiment: train a family of sizes and seeds on the same text, then compare sharing against capacity.

    python -m callbacks.capacity --config configs/capacity/small.yaml [--dry_run] [--jobs 4 --gpus [0,1,2,3]]

The direct test of the compression hypothesis, for which the evidence so far is correlational: does sharing rise more
where capacity is tighter? Every run is a process of its own, `python -m train fit`, so that nothing of one leaks into
another; finished runs are skipped, interrupted ones go on, a run that fails is named and the others go on. All finished
runs enter the report of `analysis.report.capacity.page`. Exit code: 0; 1 if a run failed; 2 for a mistake in what was
asked for; 130 or 143 after a signal (the running ones save their state first).
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser
from rich.console import Console

from analysis.report.capacity.page import write_capacity_report
from analysis.report.tables import Table, console_table
from callbacks.family import Family, Member, finished_runs, last_line

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
SHOWN = ("size", "seeds", "bits per byte", "shared, step 0", "shared, last")
"""Columns of the table of sizes that are printed."""


class Stopped(BaseException):
    """A signal asked for the end; no error, and nobody who handles errors should take it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class Job:
    """A process of one run."""

    member: Member
    process: subprocess.Popen[bytes]
    slot: int
    trains: bool
    """Whether it trains; else it measures what the training left out."""
    started: float


def train_members(members: Sequence[Member], *, jobs: int = 1, gpus: Sequence[int] = ()) -> dict[str, str]:
    """Bring every run to its end, `jobs` at a time.

    Returns:
        One line for every run that failed, by name.
    """
    waiting = deque(members)
    free = list(range(jobs))
    running: list[Job] = []
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and free:
                job = _next_job(waiting.popleft(), free[0], jobs, gpus)
                if job is not None:
                    running.append(job)
                    free.remove(job.slot)
            time.sleep(POLL_SECONDS)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                free.append(job.slot)
                _end(job, waiting, failed)
    finally:
        # Each runs in a session of its own, so this one signal is the first that it hears: it saves and ends.
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.wait()
    return failed


def _next_job(member: Member, slot: int, jobs: int, gpus: Sequence[int]) -> Job | None:
    state = member.state()
    if state == "finished":
        log.info("%s: finished, skipped", member.name)
        return None
    trains = state != "unmeasured"
    log.info("%s: %s", member.name, {"new": "starts", "interrupted": "goes on"}.get(state, "is measured"))
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpus[slot])
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    command = member.train_command() if trains else member.measure_command()
    process = _start(command, member.log, environment)
    return Job(member, process, slot, trains, time.monotonic())


def _end(job: Job, waiting: deque[Member], failed: dict[str, str]) -> None:
    member, code = job.member, job.process.returncode
    state = member.state() if code == 0 else None
    minutes = (time.monotonic() - job.started) / 60
    if state == "finished":
        log.info("%s: done, %.1f minutes", member.name, minutes)
    elif state == "unmeasured" and job.trains:
        log.warning(
            "%s: trained, but %d results are missing; they are measured now", member.name, len(member.missing())
        )
        waiting.appendleft(member)
    else:
        if state is None:
            why = f"exit code {code}: {last_line(member.log)}"
        elif state == "unmeasured":
            why = f"analyses without results: {', '.join(sorted({name for _, name in member.missing()}))}"
        else:
            why = f"ended before step {member.max_steps}"
        failed[member.name] = f"{why} (see {member.log})"
        log.error("%s: failed, %s", member.name, failed[member.name])


def _start(command: Sequence[str], output: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )


def make_ready(family: Family) -> None:
    """What all runs need, made once so that runs at the same time do not meet: concept file, tokenizer, packed text.

    Raises:
        ValueError: a command failed.
    """
    for step in family.before:
        if not Path(step.makes).exists():
            _once(family, Path(step.makes).name, step.run)
    _once(
        family, "prepare", ["train", "prepare", *(part for config in family.configs for part in ("--config", config))]
    )


def _once(family: Family, name: str, arguments: Sequence[str]) -> None:
    output = family.logs / f"{name}.log"
    log.info("python -m %s", " ".join(arguments))
    process = _start([sys.executable, "-m", *arguments], output, dict(os.environ))
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code:
        raise ValueError(f"python -m {' '.join(arguments[:2])} failed: {last_line(output)} (see {output})")


def plan_table(family: Family, members: Sequence[Member]) -> Table:
    """Every run with its state, parameters and tokens, as `train describe` counts them.

    Raises:
        ValueError: a configuration that `train` refuses.
    """
    figures = {member.size: _describe(member) for member in members if member.seed == members[0].seed}
    rows = []
    for member in members:
        parameters, tokens = figures[member.size]
        rows.append((member.name, member.state(), parameters, tokens, str(member.max_steps)))
    return Table(
        title=f"{family.name}: {len(family.sizes)} sizes x {len(family.seeds)} seeds",
        header=("run", "state", "parameters", "tokens", "steps"),
        rows=tuple(rows),
    )


def _describe(member: Member) -> tuple[str, str]:
    command = [sys.executable, "-m", "train", "describe", *member.arguments()]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise ValueError(f"{member.name}: {said[-1].removeprefix('error: ')}")
    found = [re.search(rf"^{name} +([\d,]+)", done.stdout, re.MULTILINE) for name in ("parameters", "tokens")]
    return tuple(match[1] if match else "unknown" for match in found)  # type: ignore[return-value]


def run(family: Family, *, dry_run: bool = False, report_only: bool = False) -> int:
    """The whole experiment; returns the exit code."""
    members = family.members()
    console = Console(soft_wrap=True)
    if dry_run:
        console.print(console_table(plan_table(family, members)))
        return 0
    failed: dict[str, str] = {}
    if not report_only:
        if any(member.state() in ("new", "interrupted") for member in members):
            make_ready(family)
        failed = train_members(members, jobs=family.jobs, gpus=family.gpus)
    finished = finished_runs(members)
    left_out = len(members) - len(finished)
    if left_out:
        log.warning("%d of %d runs are not finished and not in the report", left_out, len(members))
    if finished or not failed:
        said, sizes, _ = write_capacity_report(finished, family.report, f"Capacity: {family.name}")
        console.print(console_table(_narrow(sizes)))
        console.print(said)
        console.print(f"report:   {family.report}")
    for name, why in failed.items():
        console.print(f"failed:   {name}: {why}")
    return 1 if failed else 0


def _narrow(table: Table) -> Table:
    """What fits a terminal; the page has all columns."""
    kept = [place for place, name in enumerate(table.header) if name in SHOWN or name.startswith("rise")]
    rows = tuple(tuple(row[place] for place in kept) for row in table.rows)
    return Table(table.title, tuple(table.header[place] for place in kept), rows, table.note)


def make_parser() -> ArgumentParser:
    """Options of the command: those of a `Family`, from a file or given, and what to do with it."""
    parser = ArgumentParser(prog="python -m callbacks.capacity", exit_on_error=False)
    parser.add_argument("--config", action="config", help="the family, e.g. configs/capacity/small.yaml")
    parser.add_class_arguments(Family)
    parser.add_argument("--dry_run", action=ActionYesNo, default=False, help="show the plan, run nothing")
    parser.add_argument("--report_only", action=ActionYesNo, default=False, help="compare what is finished")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = make_parser()
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        options = parser.instantiate(parser.parse_args(arguments))
        family = Family(**{name: options[name] for name in inspect.signature(Family).parameters})
        return run(family, dry_run=options.dry_run, report_only=options.report_only)
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}: stopped; the same command goes on\n")
        return 128 + stopped.number
    except (ValueError, OSError, ArgumentError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


if __name__ == "__main__":
    raise SystemExit(main())
