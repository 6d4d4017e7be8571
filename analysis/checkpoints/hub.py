"""Sources on the Hugging Face hub: checkpoints as revisions of one repository, folders of a revision, or repositories.

Everything comes from the cache when it is there; with `HF_HUB_OFFLINE=1` nothing else is tried. With a disk budget, a
finished checkpoint that the sweep itself downloaded is deleted when the next one would not fit beside it.
"""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis.checkpoints.hub_cache import Hub, RepoFile, looks_like_hub_id, weights_digest
from analysis.checkpoints.source import TOKENIZER_FILES, Checkpoint, CheckpointSource
from analysis.checkpoints.weights import choose_weight_files, find_weight_files
from analysis.snapshots import CLONES_FILE, SnapshotId

logger = logging.getLogger(__name__)

GB = 10**9
CONFIG_FILES = ("config.json", "generation_config.json", CLONES_FILE)


@dataclass(kw_only=True)
class HubSource(CheckpointSource):
    """What the hub sources share: look-ups, downloads, the disk budget."""

    repo: str
    """Hub id, e.g. bigscience/bloom-560m-intermediate."""
    also: dict[str, int] = field(default_factory=dict)
    """Further checkpoints in repositories of their own, `owner/name` or `owner/name@revision`, with their steps: the
    final model of a suite is often published apart from its intermediate checkpoints. A step that the suite has itself
    is left out."""
    select: str | None = None
    """Regular expression that a discovered name must match, e.g. `^stage1-`."""
    endpoint: str | None = None
    """Another hub or a mirror; None is the client's default (`HF_ENDPOINT`)."""
    cache_dir: Path | None = None
    """None is the client's default (`HF_HUB_CACHE`)."""
    disk_budget_gb: float | None = None
    """Most disk (10^9 bytes) for what sweeps download; None keeps it all. Two checkpoints must fit if one is to be
    fetched while another is analysed. What was in the cache before is never deleted."""
    _described: dict[str, Checkpoint] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.disk_budget_gb is not None and not 0 < self.disk_budget_gb < float("inf"):
            raise ValueError(f"{self.repo}: disk_budget_gb is {self.disk_budget_gb}; give gigabytes above 0, or null")
        try:
            re.compile(self.select or "")
        except re.error as error:
            raise ValueError(f"{self.repo}: select {self.select!r} is not a regular expression: {error}") from None
        for name in self.also:
            if not looks_like_hub_id(name):
                raise ValueError(f"{self.repo}: also: {name!r} is not owner/name or owner/name@revision")

    @property
    def hub(self) -> Hub:
        return Hub(self.endpoint, self.cache_dir)

    @property
    def origin(self) -> str:
        return self.repo

    @abstractmethod
    def place(self, checkpoint: Checkpoint) -> tuple[str, str, str]:
        """Repository, revision and folder (empty, or with a slash at the end) of a checkpoint that is not in `also`."""

    @abstractmethod
    def list_own(self) -> Mapping[str, int]:
        """Name -> step of the checkpoints that are not in `also`."""

    def list_checkpoints(self) -> Sequence[Checkpoint]:
        run = self.run or self.repo.rsplit("/", 1)[-1]
        found = []
        own = self.list_own()
        also = {name: step for name, step in self.also.items() if step not in own.values()}
        for name, step in {**own, **also}.items():
            checkpoint = Checkpoint(id=SnapshotId(run, step, self.naming.tokens(name, step)), name=name)
            found.append(replace(checkpoint, cached=self.is_cached(checkpoint), marks=self.marks(checkpoint)))
        return found

    def where(self, checkpoint: Checkpoint) -> tuple[str, str, str]:
        """Repository, revision and folder of any checkpoint."""
        if checkpoint.name in self.also:
            repo, _, revision = checkpoint.name.partition("@")
            return repo, revision or "main", ""
        return self.place(checkpoint)

    def describe(self, checkpoint: Checkpoint) -> Checkpoint:
        if self.is_baseline(checkpoint):
            return checkpoint
        if checkpoint.name not in self._described:
            repo, revision, prefix = self.where(checkpoint)
            commit, files = self.hub.files(repo, revision)
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
        repo, revision, prefix = self.where(checkpoint)
        folder = self.hub.cached_folder(repo, revision)
        if folder is None or not (folder / prefix / "config.json").is_file():
            return False
        try:
            find_weight_files(folder / prefix, checkpoint.name)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def fetch(self, checkpoint: Checkpoint) -> Path:
        repo, revision, prefix = self.where(checkpoint)
        if self.is_cached(checkpoint):
            folder = self.hub.cached_folder(repo, revision)
            assert folder is not None
            return folder / prefix
        _, files = self.hub.files(repo, revision)
        names = self._wanted(files, prefix)
        self._check_budget(self.describe(checkpoint))
        folder = self.hub.download(repo, revision, names)
        self.hub.note_fetched(repo, folder.name + "/" + prefix)
        find_weight_files(folder / prefix, self.label(checkpoint))
        return folder / prefix

    def fetch_config(self, checkpoint: Checkpoint) -> Path:
        repo, revision, prefix = self.where(checkpoint)
        names = [prefix + name for name in (*CONFIG_FILES, *TOKENIZER_FILES)]
        return self.hub.download(repo, revision, names) / prefix

    def fits(self, checkpoint: Checkpoint) -> bool:
        if self.disk_budget_gb is None or self.is_baseline(checkpoint) or self.is_cached(checkpoint):
            return True
        return self._bytes_held() + (self.describe(checkpoint).size or 0) <= self.disk_budget_gb * GB

    def finish(self, checkpoint: Checkpoint) -> None:
        if self.disk_budget_gb is None or self.is_baseline(checkpoint):
            return
        repo, revision, prefix = self.where(checkpoint)
        folder = self.hub.cached_folder(repo, revision)
        if folder is None or (entry := f"{folder.name}/{prefix}") not in self.hub.fetched(repo):
            return
        if self._bytes_held() + self.hub.bytes_of(repo, {entry}) > self.disk_budget_gb * GB:
            logger.info("%s: deleted from the cache (disk budget)", self.label(checkpoint))
            self.hub.evict(repo, entry)

    def marks(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Where it lies, since one commit may hold several suites, and the commit that the cache holds: known only now
        if the checkpoint has just been downloaded."""
        if self.is_baseline(checkpoint):
            return dict(checkpoint.marks)
        repo, revision, prefix = self.where(checkpoint)
        commit = self.hub.commit(repo, revision)
        return {"place": f"{repo}@{revision}/{prefix}"} | ({"commit": commit} if commit else {})

    def config_marks(self, checkpoint: Checkpoint) -> dict[str, str]:
        """The suite's own folder of folders, whichever of them is the first that is asked for."""
        _, _, prefix = self.where(checkpoint)
        return {"place": f"{self.repo}/{prefix.rstrip('/').rpartition('/')[0]}"}

    def steps_of(self, given: list[str] | dict[str, int], discover: Callable[[], Iterable[str]]) -> Mapping[str, int]:
        """The `given` names with their steps, or where none are given those discovered ones whose name tells a step.

        Raises:
            ValueError: a given name tells no step.
        """
        if isinstance(given, dict) and given:
            return given
        names = given or [name for name in discover() if re.search(self.select or "", name)]
        steps = {name: self.naming.step(name) for name in names}
        blank = sorted(name for name, step in steps.items() if step is None and (given or name != "main"))
        if blank and given:
            raise ValueError(f"{self.repo}: {blank[0]!r} tells no step; write it as 'name: step'")
        if blank:
            logger.info("%s: no step in %d names, left out: %s", self.repo, len(blank), ", ".join(blank[:5]))
        return {name: step for name, step in steps.items() if step is not None}

    def _bytes_held(self) -> int:
        """Disk that sweeps of this suite have filled, over all its repositories."""
        repos = {self.where(checkpoint)[0] for checkpoint in self.checkpoints() if not self.is_baseline(checkpoint)}
        return sum(self.hub.bytes_of(repo, self.hub.fetched(repo)) for repo in repos)

    def _wanted(self, files: Sequence[RepoFile], prefix: str) -> list[str]:
        present = [file.path.removeprefix(prefix) for file in files if file.path.startswith(prefix)]
        weights = choose_weight_files(present)
        extra = [name for name in (*CONFIG_FILES, *TOKENIZER_FILES) if name in present]
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.template is None) != (not self.steps):
            raise ValueError(f"{self.repo}: template and steps go together")
        if self.template is not None and "{step" not in self.template:
            raise ValueError(f"{self.repo}: template {self.template!r} has no {{step}}")
        if self.template is not None and self.revisions:
            raise ValueError(f"{self.repo}: give either revisions or a template, not both")

    def list_own(self) -> Mapping[str, int]:
        if self.template is not None:
            return {self.template.format(step=step): step for step in self.steps}
        named = self.steps_of(self.revisions, lambda: self.hub.refs(self.repo))
        if not named:
            raise FileNotFoundError(
                f"{self.repo}: no branch or tag whose name tells a step (naming.step_pattern, revisions, select)"
            )
        return named

    def place(self, checkpoint: Checkpoint) -> tuple[str, str, str]:
        return self.repo, checkpoint.name, ""


@dataclass(kw_only=True)
class HubSubfolders(HubSource):
    """A suite whose checkpoints are folders of one revision (MAP-Neo: `hf_ckpt/16.78B`)."""

    at: str = "main"
    """The revision that holds all folders."""
    folders: list[str] | dict[str, int] = field(default_factory=list)
    """Folder paths (or paths with their steps); empty finds every folder with a config.json whose name tells a step."""

    def list_own(self) -> Mapping[str, int]:
        found = self.steps_of(self.folders, self._folders)
        if not found:
            raise FileNotFoundError(f"{self.repo}@{self.at}: no folder with a config.json whose name tells its step")
        return found

    def place(self, checkpoint: Checkpoint) -> tuple[str, str, str]:
        return self.repo, self.at, checkpoint.name.rstrip("/") + "/"

    def _folders(self) -> list[str]:
        _, files = self.hub.files(self.repo, self.at)
        return [f.path.removesuffix("/config.json") for f in files if f.path.endswith("/config.json")]

    def tokenizer_folder(self, checkpoint: Checkpoint, path: Path) -> Path:
        """Suites of subfolders often keep one tokenizer at the top."""
        if self.tokenizer is None and not any((path / name).is_file() for name in TOKENIZER_FILES):
            return self.hub.download(self.repo, self.at, ["config.json", *TOKENIZER_FILES])
        return super().tokenizer_folder(checkpoint, path)


@dataclass(kw_only=True)
class HubRepositories(HubSource):
    """A suite with a repository for every checkpoint (CroissantLLM: `croissantllm/base_5k ... base_185k`).

    `repo` names them with a place for the step, `{step}`, or for thousands of steps, `{k}`; `steps` lists them.
    """

    steps: list[int]
    """Optimizer steps that have a repository."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{step" not in self.repo and "{k" not in self.repo:
            raise ValueError(f"{self.repo}: has no {{step}} or {{k}}; a single repository is read by HubRevisions")
        self.run = self.run or re.sub(r"[-_]?\{[^}]*\}.*", "", self.repo.rsplit("/", 1)[-1])

    def list_own(self) -> Mapping[str, int]:
        return {self.repo.format(step=step, k=step // 1000): step for step in self.steps}

    def place(self, checkpoint: Checkpoint) -> tuple[str, str, str]:
        return checkpoint.name, "main", ""
