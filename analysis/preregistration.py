"""Analyses that were fixed before anything was measured: results that were made otherwise are refused.

A run folder may hold `plan.sha256`, written by `sha256sum` before the first measurement and best committed then: a hash
and the path of every file of the plan, seen from where the commands are started. Those that have a key `analyses` are
lists for `analysis run` (their `steps` count too). The report reads the run only if no file of the plan was changed and
every stored result was made by an analysis of the lists with exactly its settings, at one of its steps.

    sha256sum study/base.yaml study/analyses.yaml > runs/demo/plan.sha256
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from analysis.results import ResultTable
from babelscope.files import file_sha256
from babelscope.yaml_text import read_yaml

PLAN = "plan.sha256"


@dataclass(frozen=True)
class Planned:
    """One analysis of a plan."""

    file: str
    settings: dict[str, object]
    steps: tuple[int | str, ...]
    """As the list's `steps` says them, in parts: numbers, ranges, all."""

    def covers(self, step: int) -> bool:
        """Whether one of the parts has this step; `first` and `last` may be any."""
        from analysis.checkpoints.names import select_steps  # the folder imports the hub's client

        for part in self.steps:
            with suppress(ValueError):
                return bool(select_steps([step], part))
        return False


def check_plan(folder: Path, table: ResultTable) -> str:
    """A sentence on the plan of a run, empty without one.

    Raises:
        ValueError: a file of the plan was changed or is missing, or a result is not what was planned.
    """
    path = folder / PLAN
    if not path.is_file():
        return ""
    planned = read_plan(path)
    stored = [(step, name, stamp) for step, name in table.entries() if (stamp := table.stamp(step, name)) is not None]
    check_results(planned, ((step, name, stamp["settings"]) for step, name, stamp in stored))
    missing = sorted(set(planned) - {name for _, name, _ in stored})
    rest = f" Not measured yet: {', '.join(missing)}." if missing else ""
    return f"The analyses are those that {path} fixes, and no other was stored.{rest}"


def read_plan(path: Path) -> dict[str, list[Planned]]:
    """Name of an analysis to what the lists of a plan say of it (one entry for each list that has it).

    Raises:
        ValueError: a line that is none of `sha256sum`, a file that is missing or another, or no list among them.
    """
    from analysis.measures import load_analyses  # numba and transformers take seconds to import

    planned: dict[str, list[Planned]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        digest, _, name = line.strip().partition("  ")
        if len(digest) != 64 or not name:
            raise ValueError(f"{path}:{number}: not a line of sha256sum (a hash, two spaces, a path)")
        if not Path(name).is_file():
            raise ValueError(f"{path}: {name} is not there; start from the folder from which the plan's paths go")
        if file_sha256(name) != digest:
            raise ValueError(
                f"{path}: {name} is not the file that was planned; restore it as committed, or check out the commit "
                "whose plan this is"
            )
        content = read_yaml(name) if name.endswith((".yaml", ".yml")) else None
        if isinstance(content, dict) and "analyses" in content:
            steps = content.get("steps", "all")
            parts = tuple(steps if isinstance(steps, list) else str(steps).split(","))
            for analysis in load_analyses(name):
                planned.setdefault(analysis.name, []).append(Planned(name, analysis.settings(), parts))
    if not planned:
        raise ValueError(f"{path}: no list of analyses among the files of the plan")
    return planned


def check_results(planned: dict[str, list[Planned]], stored: Iterable[tuple[int, str, dict[str, object]]]) -> None:
    """Refuse the first result (step, analysis, settings) that is none of the planned ones.

    Raises:
        ValueError: it names analysis, step and what differs.
    """
    for step, name, settings in stored:
        if name not in planned:
            raise ValueError(f"{name} at step {step} is not in the plan, which has {', '.join(sorted(planned))}")
        reasons = [_difference(one, step, settings) for one in planned[name]]
        if all(reasons):
            raise ValueError(f"{name} at step {step} was not measured as planned: {reasons[0]}")


def _difference(planned: Planned, step: int, settings: dict[str, object]) -> str:
    """What differs from the plan, empty if nothing does; a file that is not here any more is taken on its word."""
    if not planned.covers(step):
        return f"{planned.file} has steps {', '.join(map(str, planned.steps))}"
    for key in sorted({*planned.settings, *settings}):
        here, there = planned.settings.get(key), settings.get(key)
        gone = str(there).startswith("sha256:") and not str(here).startswith("sha256:")
        if here != there and not gone:
            return f"{key} is {there}, in {planned.file} it is {here}"
    return ""
