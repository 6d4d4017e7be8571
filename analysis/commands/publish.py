"""The command `publish`: the snapshots of a run as revisions of a repository of the hub, with a model card.

python -m analysis publish runs/demo --repo owner/name --dry_run
"""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import ActionYesNo, ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder with snapshots")
    parser.add_argument("--repo", type=str, required=True, help="repository of the hub, owner/name; made if missing")
    parser.add_argument("--steps", type=int | list[int] | str, default="all", help="all, last, 1000:100000, 0,1000 ...")
    parser.add_argument("--license", type=str | None, default=None, help="such as apache-2.0; null says nothing")
    parser.add_argument("--private", action=ActionYesNo, default=True, help="of a repository that is made")
    parser.add_argument("--endpoint", type=str | None, default=None, help="another hub; null is HF_ENDPOINT")
    parser.add_argument("--dry_run", action=ActionYesNo, default=False, help="print what would be pushed and the card")


def run(options: Namespace) -> int:
    """Push what is missing; prints where it is."""
    from analysis.checkpoints import RunFolder
    from analysis.checkpoints.names import select_steps
    from analysis.checkpoints.publishing import check_repo, publish, revisions_of
    from analysis.report.card import model_card
    from analysis.report.run import read_run

    check_repo(options.repo)
    source = RunFolder(path=options.run)
    steps = select_steps([snapshot_id.step for snapshot_id in source.ids()], options.steps)
    revisions = revisions_of(source, steps)
    card = model_card(read_run(options.run), options.repo, [one.checkpoint.id for one in revisions], options.license)
    if options.dry_run:
        lines = [f"{one.name:<14}{(one.checkpoint.size or 0) / 1e6:>10,.1f} MB  {one.folder}" for one in revisions]
        sys.stdout.write("\n".join([*lines, f"main          {revisions[-1].name} and README.md:", "", card]))
        return 0
    pushed = publish(options.repo, revisions, card, private=options.private, endpoint=options.endpoint)
    sys.stdout.write(f"{options.repo}: pushed {', '.join(pushed)}; {len(revisions) + 1 - len(pushed)} were there\n")
    return 0
