"""`python -m analysis steer`: a sweep of steering analyses, then effect against control in one table.

The options are those of `python -m analysis run`, so a stopped sweep goes on with what is missing.
"""

from __future__ import annotations

from jsonargparse import Namespace

from analysis.commands import run as sweeps
from analysis.commands.run import add_arguments
from analysis.results import ResultTable

__all__ = ["add_arguments", "run"]


def run(options: Namespace) -> int:
    """Measure what is missing, then print the table; raises ValueError if no analysis of the list is a steering one."""
    from analysis.measures.steering import Steering
    from analysis.report.chapters.steering import effects
    from analysis.report.tables import console_table, open_console

    analyses = sweeps.read_analyses(options.analyses)
    names = [analysis.name for analysis in analyses if isinstance(analysis, Steering)]
    if not names:
        raise ValueError("steer: the list of analyses has no Steering; add one, or use `run`")
    if not options.dry_run:
        for analysis in analyses:
            if isinstance(analysis, Steering):
                analysis.read_inputs()  # a mistake in the files is told before a checkpoint is loaded
    failed = sweeps.run(options)
    if options.dry_run:
        return failed
    table = ResultTable(sweeps.results_folder(options.source, options.results))
    console = open_console()
    for name in names:
        for effect in effects(table.frame([name]), name):
            console.print(console_table(effect))
    return failed
