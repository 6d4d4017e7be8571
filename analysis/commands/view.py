"""The command `view`: a saved view of ten panels in a W&B project, for the keys of a run.

python -m analysis view runs/demo --entity my-team
"""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (runs/demo) or result folder")
    parser.add_argument("--entity", required=True, help="W&B user or team that the project belongs to")
    parser.add_argument("--project", default="babelscope", help="W&B project")
    parser.add_argument("--name", default="Babelscope", help="name of the view")


def run(options: Namespace) -> int:
    """Save the view and say where it is."""
    from analysis.tracking.view import make_view, save_view

    view = make_view(options.run, options.entity, options.project, options.name)
    sys.stdout.write(f"{save_view(view)}\n")
    return 0
