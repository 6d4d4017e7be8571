"""Snapshots of a run folder to a repository of the hub: a revision `step-N` each, the last on `main` with the card.

A revision is one commit, so it is there whole or not at all; one whose `snapshot.json` is that of the run is left
alone, and an interrupted publication goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token, hf_hub_download

from analysis.checkpoints.hub_cache import looks_like_hub_id, told
from analysis.checkpoints.local import MANIFEST, RunFolder
from analysis.checkpoints.source import Checkpoint

log = logging.getLogger(__name__)

MAIN = "main"


@dataclass(frozen=True)
class Revision:
    """A snapshot and the name of its revision."""

    name: str
    checkpoint: Checkpoint
    folder: Path

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith("."))


def revisions_of(source: RunFolder, steps: Sequence[int]) -> list[Revision]:
    """Revisions of the snapshots at `steps`, after a check that each is the one that training wrote.

    Raises:
        ValueError: weights that are not those of the snapshot's `snapshot.json`.
    """
    found = []
    for checkpoint in source.checkpoints():
        if checkpoint.id.step not in steps:
            continue
        source.verify(checkpoint)
        found.append(Revision(f"step-{checkpoint.id.step}", checkpoint, source.fetch(checkpoint)))
    return found


def publish(
    repo: str, revisions: Sequence[Revision], card: str, *, private: bool = True, endpoint: str | None = None
) -> list[str]:
    """Push what is not there yet, then the last snapshot and the card to `main`; returns names of what was pushed.

    Raises:
        ValueError: not a name of a repository.
        PermissionError: nobody is logged in, or may not write there.
        ConnectionError: the hub failed or cannot be reached.
    """
    check_repo(repo)
    if get_token() is None:
        raise PermissionError(f"{repo}: nobody is logged in at the hub; `hf auth login`, or set HF_TOKEN")
    api = HfApi(endpoint=endpoint)
    with told(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        there = {branch.name for branch in api.list_repo_refs(repo).branches}
    pushed = []
    for revision in revisions:
        if revision.name in there and _is_same(repo, revision.name, revision.folder, endpoint):
            log.info("%s@%s is there already", repo, revision.name)
            continue
        with told(repo, revision.name):
            if revision.name not in there:
                api.create_branch(repo, branch=revision.name)
            _commit(api, repo, revision, revision.name, [])
        log.info("published %s@%s", repo, revision.name)
        pushed.append(revision.name)
    with told(repo, MAIN):
        _commit(api, repo, revisions[-1], MAIN, [CommitOperationAdd("README.md", card.encode())])
    return [*pushed, MAIN]


def check_repo(repo: str) -> None:
    """Raise ValueError for what is not owner/name."""
    if not looks_like_hub_id(repo) or "@" in repo:
        raise ValueError(f"--repo {repo}: a repository is owner/name")


def _commit(api: HfApi, repo: str, revision: Revision, branch: str, further: list[CommitOperationAdd]) -> None:
    files = [CommitOperationAdd(path.name, str(path)) for path in revision.files]
    step = revision.checkpoint.id.step
    api.create_commit(repo, [*files, *further], commit_message=f"Snapshot of step {step}", revision=branch)


def _is_same(repo: str, revision: str, folder: Path, endpoint: str | None) -> bool:
    """Whether the revision holds the snapshot in `folder`, by its manifest."""
    try:
        with told(repo, revision):
            path = hf_hub_download(repo, MANIFEST, revision=revision, endpoint=endpoint)
        theirs = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ConnectionError, ValueError):
        return False  # a branch that a stopped publication left empty
    return bool(theirs == json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
