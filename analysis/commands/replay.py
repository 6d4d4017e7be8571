"""The command `replay`: the W&B page of a run, made again from what is in its folder.

python -m analysis replay runs/demo
python -m analysis replay results/bloom-560m --project babelscope --mode online
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (runs/demo) or result folder")
    parser.add_argument("--project", default="babelscope", help="W&B project; runs of one project share their charts")
    parser.add_argument("--group", type=str | None, default=None, help="W&B group; null is the run's name")
    parser.add_argument("--tags", nargs="*", default=[], help="W&B tags")
    parser.add_argument(
        "--mode", type=Literal["online", "offline"], default="offline", help="offline: upload later by `wandb sync`"
    )


def run(options: Namespace) -> int:
    """Make the page and say where it is."""
    from analysis.tracking.replay import replay
    from analysis.tracking.wandb_run import Page

    if not options.run.is_dir():
        raise FileNotFoundError(f"{options.run}: no such folder; give a run folder or a result folder")
    page = Page(
        project=options.project,
        mode=options.mode,
        group=options.group,
        tags=tuple(options.tags),
        command=f"python -m analysis replay {options.run}",
    )
    sys.stdout.write(f"{replay(options.run, page)}\n")
    return 0
