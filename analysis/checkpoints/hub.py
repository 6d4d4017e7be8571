"""Sources on the Hugging Face hub: checkpoints as revisions of one repository, or as subfolders of one revision.

Everything comes from the cache when it is there; with `HF_HUB_OFFLINE=1` nothing else is tried. With a disk budget, a
finished checkpoint that the sweep itself downloaded is deleted when the next one would not fit beside it.
"""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis.checkpoints.hub_cache import Hub, RepoFile, weights_digest
from analysis.checkpoints.source import TOKENIZER_FILES, TOKENIZER_MODELS, Checkpoint, CheckpointSource
from analysis.checkpoints.weights import choose_weight_files, find_weight_files
from analysis.snapshots import SnapshotId

logger = logging.getLogger(__name__)

GB = 10**9
CONFIG_FILES = ("config.json", "generation_config.json")


@dataclass(kw_only=True)
class HubSource(CheckpointSource):
    """What both hub sources share: look-ups, downloads, the disk budget."""

    repo: str
    """Hub id, e.g. bigscience/bloom-560m-intermediate."""
    endpoint: str | None = None
    """Another hub or a mirror; None is the client's default (`HF_ENDPOINT`)."""
    cache_dir: Path | None = None
    """None is the client's default (`HF_HUB_CACHE`)."""
    disk_budget_gb: float | None = None
    """Most disk (10^9 bytes) for what sweeps download; None keeps it all. Two checkpoints must fit if one is to be
    fetched while another is analysed. What was in the cache before is never deleted."""
    _described: dict[str, Checkpoint] = field(default_factory=dict, init=False, repr=False)

    @property
    def hub(self) -> Hub:
        return Hub(self.endpoint, self.cache_dir)

    @abstractmethod
    def revision(self, checkpoint: Checkpoint) -> str:
        """The revision that holds `checkpoint`."""

    def folder(self, checkpoint: Checkpoint) -> str:
        """Its folder in that revision, with a slash at the end; empty for the top."""
        return ""

    def describe(self, checkpoint: Checkpoint) -> Checkpoint:
        if self.is_baseline(checkpoint):
            return checkpoint
        if checkpoint.name not in self._described:
            commit, files = self.hub.files(self.repo, self.revision(checkpoint))
            prefix = self.folder(checkpoint)
            sizes = {f.path.removeprefix(prefix): f.size or 0 for f in files if f.path.startswith(prefix)}
            chosen = choose_weight_files(sizes)
            self._described[checkpoint.name] = replace(
                checkpoint,
                size=sum(sizes[name] for name in chosen) or None,
                marks={"commit": commit} if commit else {},
                digest=weights_digest(files, prefix),
                cached=self.is_cached(checkpoint),
            )
        return self._described[checkpoint.name]

    def is_cached(self, checkpoint: Checkpoint) -> bool:
        """Whether config and all weight files are in the cache."""
        folder = self.hub.cached_folder(self.repo, self.revision(checkpoint))
        if folder is None or not (folder / self.folder(checkpoint) / "config.json").is_file():
            return False
        try:
            find_weight_files(folder / self.folder(checkpoint), checkpoint.name)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def fetch(self, checkpoint: Checkpoint) -> Path:
        revision, prefix = self.revision(checkpoint), self.folder(checkpoint)
        if self.is_cached(checkpoint):
            folder = self.hub.cached_folder(self.repo, revision)
            assert folder is not None
            return folder / prefix
        _, files = self.hub.files(self.repo, revision)
        names = self._wanted(files, prefix)
        described = self.describe(checkpoint)
        self._check_budget(described)
        folder = self.hub.download(self.repo, revision, names)
        self.hub.note_fetched(self.repo, folder.name + "/" + prefix)
        find_weight_files(folder / prefix, self.label(checkpoint))
        return folder / prefix

    def fetch_config(self, checkpoint: Checkpoint) -> Path:
        prefix = self.folder(checkpoint)
        names = [prefix + name for name in (*CONFIG_FILES, *TOKENIZER_FILES, *TOKENIZER_MODELS)]
        return self.hub.download(self.repo, self.revision(checkpoint), names) / prefix

    def fits(self, checkpoint: Checkpoint) -> bool:
        if self.disk_budget_gb is None or self.is_baseline(checkpoint) or self.is_cached(checkpoint):
            return True
        held = self.hub.bytes_of(self.repo, self.hub.fetched(self.repo))
        return held + (self.describe(checkpoint).size or 0) <= self.disk_budget_gb * GB

    def finish(self, checkpoint: Checkpoint) -> None:
        if self.disk_budget_gb is None or self.is_baseline(checkpoint):
            return
        folder = self.hub.cached_folder(self.repo, self.revision(checkpoint))
        if folder is None:
            return
        entry, ours = folder.name + "/" + self.folder(checkpoint), self.hub.fetched(self.repo)
        if entry not in ours:
            return
        held = self.hub.bytes_of(self.repo, ours)
        if held + self.hub.bytes_of(self.repo, {entry}) > self.disk_budget_gb * GB:
            logger.info("%s: deleted from the cache (disk budget)", self.label(checkpoint))
            self.hub.evict(self.repo, entry)

    def marks(self, checkpoint: Checkpoint) -> dict[str, str]:
        """The commit that the cache holds: known only now if the checkpoint has just been downloaded."""
        if self.is_baseline(checkpoint):
            return dict(checkpoint.marks)
        commit = self.hub.commit(self.repo, self.revision(checkpoint))
        return {"commit": commit} if commit else {}

    def _wanted(self, files: Sequence[RepoFile], prefix: str) -> list[str]:
        present = [file.path.removeprefix(prefix) for file in files if file.path.startswith(prefix)]
        weights = choose_weight_files(present)
        extra = [name for name in (*CONFIG_FILES, *TOKENIZER_FILES, *TOKENIZER_MODELS) if name in present]
        return [prefix + name for name in (*weights, *extra)]

    def _check_budget(self, checkpoint: Checkpoint) -> None:
        if self.disk_budget_gb is not None and (checkpoint.size or 0) > self.disk_budget_gb * GB:
            size = f"{(checkpoint.size or 0) / GB:.1f} GB"
            raise ValueError(f"{self.label(checkpoint)}: {size} exceed disk_budget_gb {self.disk_budget_gb}")


@dataclass(kw_only=True)
class HubRevisions(HubSource):
    """A suite whose checkpoints are branches, tags or commits of one repository.

    The list comes from `revisions`, or from `template` and `steps`, or (neither given) from the repository's own
    branches and tags, of which those are taken whose name tells a step.
    """

    revisions: list[str] | dict[str, int] = field(default_factory=list)
    """Names whose step can be read from them, or names with their steps (for commits)."""
    template: str | None = None
    """Name with a place for the step: `global_step{step}`; needs `steps`."""
    steps: list[int] = field(default_factory=list)
    select: str | None = None
    """Regular expression that a discovered name must match, e.g. `^stage1-`."""

    def __post_init__(self) -> None:
        if (self.template is None) != (not self.steps):
            raise ValueError(f"{self.repo}: template and steps go together")
        if self.template is not None and "{step" not in self.template:
            raise ValueError(f"{self.repo}: template {self.template!r} has no {{step}}")
        if self.template is not None and self.revisions:
            raise ValueError(f"{self.repo}: give either revisions or a template, not both")

    def list_checkpoints(self) -> Sequence[Checkpoint]:
        named = self._named_steps()
        run = self.run or self.repo.rsplit("/", 1)[-1]
        if not named:
            raise FileNotFoundError(
                f"{self.repo}: no branch or tag whose name tells a step (naming.step_pattern, revisions)"
            )
        found = []
        for name, step in named.items():
            checkpoint = Checkpoint(id=SnapshotId(run, step, self.naming.tokens(name, step)), name=name)
            commit = self.hub.commit(self.repo, name)
            found.append(
                replace(checkpoint, cached=self.is_cached(checkpoint), marks={"commit": commit} if commit else {})
            )
        return found

    def revision(self, checkpoint: Checkpoint) -> str:
        return checkpoint.name

    def _named_steps(self) -> Mapping[str, int]:
        if self.template is not None:
            return {self.template.format(step=step): step for step in self.steps}
        if isinstance(self.revisions, dict) and self.revisions:
            return self.revisions
        if self.revisions:
            steps = {name: self.naming.step(name) for name in self.revisions}
            blank = [name for name, step in steps.items() if step is None]
            if blank:
                raise ValueError(f"{self.repo}: revision {blank[0]!r} tells no step; write it as 'name: step'")
            return {name: step for name, step in steps.items() if step is not None}
        names = [name for name in self.hub.refs(self.repo) if self.select is None or re.search(self.select, name)]
        steps = {name: self.naming.step(name) for name in names}
        blank = sorted(name for name, step in steps.items() if step is None and name != "main")
        if blank:
            logger.info("%s: no step in %d names, left out: %s", self.repo, len(blank), ", ".join(blank[:5]))
        return {name: step for name, step in steps.items() if step is not None}


@dataclass(kw_only=True)
class HubSubfolders(HubSource):
    """A suite whose checkpoints are folders of one revision (MAP-Neo: `hf_ckpt/16.78B`)."""

    at: str = "main"
    """The revision that holds all folders."""
    folders: list[str] | dict[str, int] = field(default_factory=list)
    """Folder paths (or paths with their steps); empty finds every folder with a config.json whose name tells a step."""

    def list_checkpoints(self) -> Sequence[Checkpoint]:
        run = self.run or self.repo.rsplit("/", 1)[-1]
        commit, files = self.hub.files(self.repo, self.at)
        if isinstance(self.folders, dict) and self.folders:
            named: dict[str, int | None] = dict(self.folders)
        else:
            names = self.folders or [
                f.path.removesuffix("/config.json") for f in files if f.path.endswith("/config.json")
            ]
            named = {name: self.naming.step(name) for name in names}
        found = []
        for name, step in named.items():
            if step is None:
                if self.folders:
                    raise ValueError(f"{self.repo}: folder {name!r} tells no step; write it as 'folder: step'")
                logger.info("%s: folder %s tells no step, left out", self.repo, name)
                continue
            checkpoint = Checkpoint(id=SnapshotId(run, step, self.naming.tokens(name, step)), name=name)
            found.append(
                replace(checkpoint, cached=self.is_cached(checkpoint), marks={"commit": commit} if commit else {})
            )
        if not found:
            raise FileNotFoundError(f"{self.repo}@{self.at}: no folder with a config.json whose name tells its step")
        return found

    def revision(self, checkpoint: Checkpoint) -> str:
        return self.at

    def folder(self, checkpoint: Checkpoint) -> str:
        return checkpoint.name.rstrip("/") + "/"

    def tokenizer_folder(self, checkpoint: Checkpoint, path: Path) -> Path:
        """Suites of subfolders often keep one tokenizer at the top."""
        if self.tokenizer is None and not any(
            (path / name).is_file() for name in (*TOKENIZER_FILES, *TOKENIZER_MODELS)
        ):
            return self.hub.download(self.repo, self.at, ["config.json", *TOKENIZER_FILES, *TOKENIZER_MODELS])
        return super().tokenizer_folder(checkpoint, path)
