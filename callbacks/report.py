"""The report of a run, renewed while it trains: whoever opens the page sees what is known so far."""

from __future__ import annotations

import logging
from pathlib import Path

import pytorch_lightning as pl

from callbacks.step import StepCallback

log = logging.getLogger(__name__)


class ReportPage(StepCallback):
    """Writes `report.html` into the run folder whenever results were added, and when the fit ends.

    List it after the analyses and the `Tracker`, whose records it shows. A page that cannot be written costs a warning.
    """

    def __init__(self) -> None:
        self._seen = -1
        """Files of results when the page was last written."""

    def on_step(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            there = sum(1 for _ in folder.glob("results/step_*/*.parquet"))
            if there != self._seen:
                self._seen = there
                self._write(folder)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write(Path(trainer.default_root_dir))

    def _write(self, folder: Path) -> None:
        from analysis.report.report import write_report

        try:
            write_report([folder])
        except Exception as error:  # days of training do not end for want of a page
            log.warning("%s/report.html could not be written: %s", folder, error)
