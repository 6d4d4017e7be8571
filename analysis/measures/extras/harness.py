"""Tasks of the LM Evaluation Harness on snapshots: behaviour on published benchmarks beside the internals.

The harness (Gao et al., zenodo 10256836) is the optional extra `eval`; it is imported when a snapshot is measured.
Tasks of one's own are YAML files in a folder (`include`).
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from analysis.base import Analysis, Row
from analysis.snapshots import Snapshot
from babelscope.files import folder_sha256


@dataclass(kw_only=True)
class EvalHarness(Analysis):
    """Scores of harness tasks.

    Rows, for each task and metric that the harness gives (`condition` is `<task>/<metric>`, `language` that of the task
    if it has one): `task_score`, with 1.96 standard errors of the harness on both sides where it knows one.

    Raises (when measuring):
        ValueError: the harness is not installed, or does not know a task.
    """

    default_name: ClassVar[str] = "tasks"
    headlines: ClassVar[tuple[str, ...]] = ("task_score",)
    positive: ClassVar[tuple[str, ...]] = ("limit", "batch_size")
    not_settings: ClassVar[tuple[str, ...]] = (*Analysis.not_settings, "batch_size", "include")

    tasks: dict[str, str]
    """Name of a task or group to its language (ISO 639-1; empty for none)."""
    include: str | None = None
    """Folder with tasks of one's own, YAML files of the harness."""
    num_fewshot: int = 0
    """Examples before every question."""
    limit: int | None = None
    """Questions of each task; none means all."""
    batch_size: int = 16
    """Requests per forward pass."""
    seed: int = 1234
    """Chooses the examples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise ValueError(f"{self.name}: tasks is empty; name tasks, such as tasks: {{xnli_es: es}}")
        if self.num_fewshot < 0:
            raise ValueError(f"{self.name}: num_fewshot={self.num_fewshot} must be 0 or more")

    def settings(self) -> dict[str, object]:
        folder = Path(self.include) if self.include else None
        digests = {} if folder is None else folder_sha256(folder, "**/*")
        harness = version("lm_eval") if importlib.util.find_spec("lm_eval") else None
        return {**super().settings(), "include": digests, "harness": harness}

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError(f"{self.name}: the LM Evaluation Harness is not installed; pip install 'babelscope[eval]'")
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.WARNING)
        manager = TaskManager(include_path=self.include)
        known = {*manager.all_tasks}
        if missing := sorted(set(self.tasks) - known):
            raise ValueError(
                f"{self.name}: the harness has no task {missing[0]!r}; own tasks go into a folder `include`"
            )
        # A copy: the harness gives a tokenizer without padding another of its tokens for it, which would then count as
        # special in whatever is measured, and saved, after it.
        tokenizer = copy.deepcopy(snapshot.tokenizer)
        model = HFLM(pretrained=snapshot.model, tokenizer=tokenizer, backend="causal", batch_size=self.batch_size)
        with _generators_put_back():
            scores: dict[str, Any] = simple_evaluate(
                model=model,
                tasks=list(self.tasks),
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                task_manager=manager,
                bootstrap_iters=100,
                log_samples=False,
                fewshot_random_seed=self.seed,
            )["results"]
        for task, found in sorted(scores.items()):
            yield from self._rows(task, found)

    def _rows(self, task: str, found: dict[str, Any]) -> Iterator[Row]:
        """The harness calls a score `<metric>,<filter>` and its error `<metric>_stderr,<filter>`."""
        owner = task if task in self.tasks else next((name for name in self.tasks if task.startswith(name)), "")
        for key, value in sorted(found.items()):
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = found.get(f"{metric}_stderr,{kind}")
            half = 1.96 * error if isinstance(error, int | float) else None
            yield Row(
                metric="task_score",
                value=value,
                condition=f"{task}/{metric}" + ("" if kind == "none" else f"/{kind}"),
                language=self.tasks.get(owner) or None,
                low=None if half is None else float(value) - half,
                high=None if half is None else float(value) + half,
            )


@contextmanager
def _generators_put_back() -> Iterator[None]:
    """The harness seeds the global generators and draws from them; a training must not notice."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
