"""Measure the live model at scheduled steps, without the training ever noticing.

The callback decides *when*; the analyses of a YAML list decide *what*. A measurement runs in eval mode, without
gradients or autocast, inside RNG isolation, and puts every module's train flag back: a run with instrumentation ends in
weights bit-identical to one without (tested). Results go to the run's result table, headline numbers and figures to the
`Tracker`. An analysis that raises is logged and counted, and the training goes on.

With several ranks every rank holds the same weights, so the analyses of one step are dealt out over the ranks, each
writes its own result file, and all ranks meet at one place: no rank waits inside a collective that another left. Once
the training is told to stop, the analyses that are left wait for the next start, which goes on at this very step.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn
from transformers import PreTrainedModel

from analysis.base import Analysis
from analysis.checkpoints.random_networks import NUM_NETWORKS, Mould, measure_null
from analysis.cost import Shape
from analysis.extraction.sites import UnitSpace, find_sites
from analysis.measures import load_analyses
from analysis.preflight import check
from analysis.report.headlines import KEY_BUDGET, Group, scalars, within_budget
from analysis.results import ResultTable
from analysis.snapshots import Snapshot, SnapshotId
from analysis.tracking.media import COST
from babelscope.errors import one_line
from babelscope.records import Clone
from callbacks.schedule import Schedule, required
from callbacks.signals import agree, told_to_stop
from callbacks.step import StepCallback, require_plain_model
from callbacks.tracking import Tracker

log = logging.getLogger(__name__)

TRAINING_KEYS = 12
"""Keys beside those of analyses and languages: loss, gradient norm, speed, learning rate, mean over languages, axes."""


def live_snapshot(trainer: pl.Trainer, module: pl.LightningModule) -> Snapshot:
    """The model in training as a `Snapshot`: the plain module, not the compiled or wrapped one, since hooks need it.

    Raises:
        ValueError: the module lacks `model` or `tokenizer`.
    """
    require_plain_model(module, "live analysis needs")
    tokens = getattr(module, "tokens_seen", None)
    run = Path(trainer.default_root_dir).resolve().name
    identity = SnapshotId(run, trainer.global_step, None if tokens is None else int(tokens))
    known = getattr(trainer.datamodule, "clones", None) or {}  # type: ignore[attr-defined]
    clones = {name: Clone(**entry) for name, entry in known.items()}
    return Snapshot(identity, module.model, module.tokenizer, clones=clones)  # type: ignore[arg-type]


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no autocast, isolated random numbers; everything is put back, also after an error."""
    flags = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device.type
    raised: BaseException | None = None
    with isolate_rng(), torch.no_grad(), torch.autocast(device, enabled=False):
        try:
            model.eval()
            yield
        except BaseException as error:
            raised = error  # isolate_rng restores nothing if an exception passes through it
        finally:
            for module, flag in flags.items():
                module.training = flag
    if raised is not None:
        raise raised


class AnalysisCallback(StepCallback):
    """Run a list of analyses at the scheduled optimizer steps.

    List it after the snapshot writer (weights are safe if an analysis fails) and before the `Tracker` and the resume
    checkpoint. Metrics recorded: the headlines of every analysis (see `analysis.report.headlines`) and
    `analysis_cost/seconds/<name>`, `analysis_cost/share`, `analysis_cost/failures`.

    Args:
        analyses: YAML file with the list (`analyses:` with `class_path` entries).
        schedule: optimizer steps at which to measure.
        max_share: upper bound for the share of wall time spent here; above it, steps other than 0 and the last are left
            to `python -m analysis run` (logged). None: no bound.
        key_budget: at most this many scalar keys a step, those of training and validation included.
        record_as: name of this callback's rows in the record of the run. A second callback of this kind, say for
            steering on a sparse schedule, needs another one.
        null_networks: random networks of the same configuration that are measured once a run, with the first step, by
            the analyses that compare with them. 0: none, `python -m analysis run` does it later.
    """

    def __init__(
        self,
        analyses: str,
        schedule: Schedule | None = None,
        max_share: float | None = None,
        key_budget: int = KEY_BUDGET,
        record_as: str = "analysis",
        null_networks: int = NUM_NETWORKS,
    ) -> None:
        if max_share is not None and not 0 < max_share < 1:
            raise ValueError(f"max_share is {max_share}; use a share between 0 and 1, or leave it out")
        if key_budget < 1:
            raise ValueError(f"key_budget is {key_budget}; use at least 1 key a step")
        if not record_as or record_as == "train":
            raise ValueError(f"record_as is {record_as!r}; use a name of its own such as 'steering'")
        if null_networks < 0:
            raise ValueError(f"null_networks is {null_networks}; use 0 for none, or a number")
        self.list_file = analyses
        self.null_networks = null_networks
        self.record_as = record_as
        self.analyses: list[Analysis] = load_analyses(analyses)
        self.schedule = required(schedule, "AnalysisCallback")
        self.max_share, self.key_budget = max_share, key_budget
        self.seconds = 0.0
        """Wall time spent on analyses since the fit began."""
        self.failures = 0
        """Measurements and records that failed so far, on any rank; part of the checkpoint."""
        self._started = time.monotonic()
        self._newest: dict[str, float] = {}
        """Seconds that each analysis of this rank took when it was last measured."""

    def preflight(
        self, *, languages: Collection[str] | None, excluded: Collection[str], model: PreTrainedModel | None = None
    ) -> None:
        """Whether the list fits the run, asked by `train fit` and `train describe` before anything is written.

        Raises:
            FileNotFoundError, ValueError: see `analysis.preflight.check`; names the file of the list.
        """
        num_units = None if model is None else UnitSpace(find_sites(model)).num_units
        try:
            check(self.analyses, languages=languages, excluded=excluded, num_units=num_units)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{self.list_file}: {error}") from None

    def work(self, **shape: float) -> dict[str, float | None]:
        """Predicted FLOPs of a snapshot by analysis, None where nobody predicts; last those of all random networks.

        Asked by `train describe`; `shape` are the fields of `analysis.cost.Shape`.

        Raises:
            FileNotFoundError, ValueError: a file of texts that is not there or not readable.
        """
        model = Shape(**shape)  # type: ignore[arg-type]
        found = {analysis.name: analysis.work(model) for analysis in self.analyses}
        null = [found[analysis.name] or 0.0 for analysis in self.analyses if analysis.needs_null]
        return found | ({"random networks": self.null_networks * sum(null)} if self.null_networks and null else {})

    # Lightning's hooks ------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started, self.seconds = time.monotonic(), 0.0
        super().on_train_start(trainer, pl_module)
        self.on_step(trainer, pl_module, trainer.global_step)  # step 0, or one whose analyses a kill prevented

    def on_step(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        if not self.schedule.due(step, trainer.max_steps):
            return
        # By the slowest rank's clock: a rank that passed by alone would leave the others waiting.
        bound = None if step in (0, trainer.max_steps) else self.max_share
        if bound is not None and agree(trainer, self.share > bound)[0]:
            log.warning(
                "step %d: analyses took %.0f %% of the time so far, over max_share; measure it later with "
                "`python -m analysis run`",
                step,
                100 * self.share,
            )
            return
        self.measure(trainer, module)

    # the measurement --------------------------------------------------------------------------------------------------

    @property
    def share(self) -> float:
        """Share of the wall time since the fit began that went into analyses."""
        elapsed = time.monotonic() - self._started
        return self.seconds / elapsed if elapsed > 0 else 0.0

    def seconds_to_come(self, step: int, max_steps: int) -> float:
        """Expected wall time of the measurements after `step`, each as long as the newest one."""
        return sum(later > step for later in self.schedule.up_to(max_steps)) * sum(self._newest.values())

    def measure(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Run what is missing for this step, on every rank its own analyses; then rank 0 records the headlines."""
        started = time.monotonic()
        snapshot = live_snapshot(trainer, module)
        table = ResultTable(Path(trainer.default_root_dir) / "results")
        step, left, failures = snapshot.id.step, False, self.failures
        mine = self.analyses[trainer.global_rank :: trainer.world_size]
        work: list[tuple[str, Callable[[], object]]] = [
            (f"analysis {analysis.name!r}", partial(self._run_one, analysis, snapshot, table)) for analysis in mine
        ]
        work.append(("random networks", partial(self._run_null, mine, snapshot, table)))
        with measuring(snapshot.model):
            for what, run in work:
                left = told_to_stop(trainer) and step < trainer.max_steps  # a finished run is never begun again
                if left:
                    log.info("step %d: told to stop; from %s on left to the next start", step, what)
                    break
                self._attempt(f"step {step}: {what}", run)
        left = bool(agree(trainer, left)[0])
        failed = torch.tensor(self.failures - failures, device=trainer.strategy.root_device)
        self.failures = failures + int(trainer.strategy.reduce(failed, reduce_op="sum"))
        self.seconds += time.monotonic() - started
        if trainer.is_global_zero and not left:
            self._attempt(f"step {step}: the record", partial(self._record, trainer, snapshot.id, table))

    def _run_one(self, analysis: Analysis, snapshot: Snapshot, table: ResultTable) -> None:
        if table.has(snapshot.id, analysis):
            return
        log.info("step %d: measuring %s", snapshot.id.step, analysis.name)
        begun = time.monotonic()
        measured = list(analysis.measure(snapshot))
        self._newest[analysis.name] = time.monotonic() - begun
        about = {"parameters": snapshot.num_parameters}
        table.write(snapshot.id, analysis, measured, self._newest[analysis.name], about)

    def _run_null(self, analyses: list[Analysis], snapshot: Snapshot, table: ResultTable) -> None:
        precision = {"dtype": str(snapshot.model.dtype).removeprefix("torch.")}
        measure_null(Mould.of(snapshot), analyses, table.root, self.null_networks, precision)

    def _attempt(self, what: str, run: Callable[[], object]) -> None:
        """Whatever goes wrong in a measurement (out of memory, a full disk, a bug), days of training go on."""
        try:
            run()
        except Exception as error:
            self.failures += 1
            said, kind = one_line(error, 2000), type(error).__name__
            log.error("%s failed and is left out: %s: %s", what, kind, said, exc_info=log.isEnabledFor(logging.DEBUG))
            del error
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _record(self, trainer: pl.Trainer, snapshot_id: SnapshotId, table: ResultTable) -> None:
        tracker = next((c for c in trainer.callbacks if isinstance(c, Tracker)), None)  # type: ignore[attr-defined]
        if tracker is None or tracker.has(self.record_as, snapshot_id.step):
            return
        by_analysis: dict[str, list[Group]] = {}
        cost: dict[str, float] = {}
        for analysis in self.analyses:
            if not table.has(snapshot_id, analysis):
                continue
            rows = table.rows(snapshot_id.step, analysis.name)
            by_analysis[analysis.name] = scalars(analysis.name, rows, analysis.headlines)
            stamp = table.stamp(snapshot_id.step, analysis.name)
            assert stamp is not None
            cost[f"{COST}{analysis.name}"] = float(stamp["seconds"])
        cost[f"{self.record_as}_cost/share"] = self.share
        cost[f"{self.record_as}_cost/failures"] = float(self.failures)
        values = within_budget(by_analysis, self._free_keys(trainer) - len(cost)) | cost
        tracker.record(self.record_as, values, snapshot_id.step, snapshot_id.tokens)

    def _free_keys(self, trainer: pl.Trainer) -> int:
        """Keys of the page's budget that training and validation leave, divided among the callbacks of this kind."""
        languages = getattr(trainer.datamodule, "validation_languages", None) or ()  # type: ignore[attr-defined]
        alike = sum(isinstance(callback, AnalysisCallback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        return max(0, self.key_budget - TRAINING_KEYS - 2 * len(languages)) // alike

    # checkpointed state -----------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Lightning stores the state of callbacks by this key: two of this kind must differ."""
        return self._generate_state_key(record_as=self.record_as)

    def state_dict(self) -> dict[str, Any]:
        return {"failures": self.failures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.failures = int(state_dict["failures"])
