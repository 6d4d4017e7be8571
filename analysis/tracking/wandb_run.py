"""A run's W&B page: opened with the first row that it lacks, and given every row of `metrics.jsonl` exactly once.

The W&B run is made here rather than by Lightning's logger: Lightning would define `*` against its own step axis, where
globs win at random, and its step is one behind `trainer.global_step`. Our axes are `progress/step` (optimizer steps)
and `progress/tokens`; every row carries both. W&B's own step is the row's number in `metrics.jsonl`, so it says what
W&B has: online the server tells the number after its last row, offline the last row on disk does. What a killed process
had not flushed is sent again when the run goes on, and no row is sent twice.

    runs/<name>/run.json         {"name", "wandb_id", "created", "git"}
    runs/<name>/wandb/           offline or online files of W&B
    runs/<name>/wandb/sent.json  {"row", "page"}: last row of a session that ended well, and where its page is
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from analysis.report.run import read_json, read_metrics
from analysis.tracking.about import configuration, result_folder, summary, tags_of
from analysis.tracking.metrics import METRICS_FILE
from analysis.tracking.offline import last_row
from babelscope.files import write_json

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

log = logging.getLogger(__name__)

STEP_AXIS, TOKEN_AXIS, SNAPSHOT_AXIS = "progress/step", "progress/tokens", "progress/snapshot"
OVER_SNAPSHOTS = ("panels/", "heatmaps/", "pairs/", "tables/")
"""Keys that are looked at snapshot by snapshot, not drawn over steps."""
Mode = Literal["auto", "online", "offline", "disabled"]
Media = Callable[[dict[str, Any]], Mapping[str, Any]]
"""From a row of `metrics.jsonl` to figures and tables that belong beside it on the page."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Where and under which name a run is shown."""

    project: str = "babelscope"
    mode: Mode = "auto"
    """`auto` goes online if a login is found and offline otherwise (never a prompt), unless WANDB_MODE is `offline`,
    `dryrun` or `disabled`; `disabled` opens no page."""
    group: str | None = None
    """Post-hoc runs of the same model share it; None is the run's name."""
    tags: tuple[str, ...] = ()
    notes: str = ""
    command: str = ""
    """How to make the run again; appended to the notes."""
    job_type: str = "train"
    axis: str = STEP_AXIS

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "online", "offline", "disabled"):
            raise ValueError(f"mode is {self.mode!r}; use auto, online, offline or disabled")


class WandbRun:
    """The W&B run of a run folder. W&B must never stop a training: whatever it raises is logged.

    Args:
        root: folder of the run.
        page: where it is shown.
        identity: content of `run.json`.
        media: figures and tables of a row, if any.
        fresh: make another run of it, which knows nothing of what was sent before and leaves no note.
    """

    def __init__(
        self,
        root: Path,
        page: Page,
        identity: Mapping[str, Any],
        media: Media | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        self.root, self.page, self.identity, self.media, self.fresh = root, page, identity, media, fresh
        self.run: Run | None = None
        self._asked = page.mode == "disabled" or (page.mode == "auto" and os.environ.get("WANDB_MODE") == "disabled")
        """Whether this session's W&B run has been asked for."""
        self._refused = False
        self._on_snapshot_axis: set[str] = set()
        self._sent_file = root / "wandb" / "sent.json"
        before = {} if fresh else read_json(self._sent_file)
        self.sent = int(before.get("row", -1))
        """Number of the last row that W&B has for certain."""
        self.location: str | None = before.get("page")
        """Where to look: the URL of an online run or the folder of an offline one."""
        newest = self._recorded()[-1:]
        if not self._asked and newest and newest[0]["row"] > self.sent:
            self.sent = max(self.sent, last_row(root, identity["wandb_id"]))
        self._waiting = bool(newest) and newest[0]["row"] > self.sent

    def _recorded(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`; a fresh run is handed all of its rows."""
        return [] if self.fresh else read_metrics(self.root / METRICS_FILE)

    def send(self, row: dict[str, Any]) -> None:
        """Show a row that has just been recorded, after those that W&B lacks."""
        if not self._asked:
            self._begin()
            for earlier in self._recorded():
                if self.sent < earlier["row"] < row["row"]:
                    self._log(earlier)
        if row["row"] > self.sent:
            self._log(row)

    def finish(self, exit_code: int) -> None:
        """End the session: what is still missing, configuration, artifacts, summary, and a note of what was sent.

        Nothing missing and nothing sent opens no page.
        """
        if self._waiting and not self._asked:
            self.send(self._recorded()[-1])
        if self.run is None:
            return
        try:
            self.run.config.update(configuration(self.root, self.identity), allow_val_change=True)
            log_artifacts(self.run, self.root)
        except Exception as error:
            log.warning("W&B was not given the artifacts: %s", error)
        self._tell_summary()
        try:
            self.run.finish(exit_code=exit_code)
            if not self.fresh:
                write_json(self._sent_file, {"row": self.sent, "page": self.location})
        except Exception as error:
            log.warning("W&B did not finish cleanly: %s", error)
        self.run = None

    def _begin(self) -> None:
        self._asked = True
        try:
            self.run = self._init()
        except Exception as error:  # its local service can fail in many ways
            log.warning("W&B is unavailable (%s); the run is recorded in %s only", error, self.root / METRICS_FILE)
            return
        if not self.run.offline:
            self.sent = self.run.starting_step - 1
        self.location = str(Path(self.run.dir).parent) if self.run.offline else self.run.url

    def _init(self) -> Run:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        name_folders(self.root)
        mode = self.page.mode
        if mode == "auto":
            mode = "online" if _logged_in() else "offline"
        config = configuration(self.root, self.identity)
        run = wandb.init(
            project=self.page.project,
            id=None if in_sweep() else self.identity["wandb_id"],  # a sweep has named it already
            name=self.identity["name"],
            group=self.page.group or self.identity["name"],
            tags=[*dict.fromkeys([*self.page.tags, *tags_of(config)])],
            notes=f"{self.page.notes}\n{self.page.command}".strip(),
            job_type=self.page.job_type,
            config=config,
            dir=str(self.root),
            mode=mode,
            resume="allow" if mode == "online" and not in_sweep() else None,
            settings=wandb.Settings(init_timeout=60, silent=True, console="off"),
        )
        for axis in (STEP_AXIS, TOKEN_AXIS, SNAPSHOT_AXIS):
            run.define_metric(axis, hidden=True)
        run.define_metric("*", step_metric=self.page.axis)
        if mode == "offline":
            log.info("W&B is offline: %s (upload later with `wandb sync`)", Path(run.dir).parent)
        return run

    def _log(self, row: dict[str, Any]) -> None:
        """Show one row. After one that W&B does not take, the session takes no more: the next one sends them all."""
        if self.run is None or self._refused:
            return
        axes = {STEP_AXIS: row["step"]} | ({} if row["tokens"] is None else {TOKEN_AXIS: row["tokens"]})
        media = self._draw(row)
        try:
            for key in media.keys() - self._on_snapshot_axis:
                if key.startswith(OVER_SNAPSHOTS):  # by name: of two patterns that match W&B takes either
                    self.run.define_metric(key, step_metric=SNAPSHOT_AXIS)
            self._on_snapshot_axis |= media.keys()
            self.run.log({**row["values"], **media, **axes}, step=row["row"])
        except Exception as error:
            self._refused = True
            log.warning("W&B took no row for step %d (%s); the next start sends what is missing", row["step"], error)
            return
        self.sent = row["row"]
        if media:
            self._tell_summary()

    def _draw(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self.media(row)) if self.media is not None else {}
        except Exception as error:
            log.warning("step %d: figures for W&B could not be drawn: %s", row["step"], error)
            return {}

    def _tell_summary(self) -> None:
        """Best, last and verdict, so that whoever opens the page of a running job reads them first."""
        assert self.run is not None
        try:
            self.run.summary.update(summary(self.root))
        except Exception as error:
            log.warning("W&B was given no summary: %s", error)


_named: dict[str, str] = {}
"""Variables of W&B's folders that this process has set, with their values."""


def name_folders(root: Path) -> None:
    """W&B writes nothing outside the run folder, unless the user has named another place.

    The user's settings (WANDB_CONFIG_DIR: entity, a server of one's own) are only read and stay where they are.
    """
    for name in ("data", "cache"):
        variable = f"WANDB_{name.upper()}_DIR"
        if os.environ.get(variable) == _named.get(variable):  # unset, or ours, of an earlier run of this process
            os.environ[variable] = _named[variable] = str(root.resolve() / "wandb" / name)


def log_artifacts(run: Run, root: Path) -> None:
    """Report and result tables as files, snapshots as references to where they lie."""
    import wandb

    results = result_folder(root)
    tables = sorted(path for pattern in ("step_*/*", "null_*/step_*/*") for path in results.glob(f"{pattern}.parquet"))
    if tables:
        artifact = wandb.Artifact(f"results-{run.id}", type="results")
        for path in tables:
            artifact.add_file(str(path), name=str(path.relative_to(results)), policy="immutable")
        run.log_artifact(artifact)
    if (root / "report.html").is_file():
        artifact = wandb.Artifact(f"report-{run.id}", type="report")
        artifact.add_file(str(root / "report.html"), policy="immutable")
        run.log_artifact(artifact)
    snapshots = [path for path in sorted(root.glob("snapshots/step_*")) if (path / "snapshot.json").is_file()]
    if snapshots:
        artifact = wandb.Artifact(f"snapshots-{run.id}", type="model")
        for path in snapshots:
            about = read_json(path / "snapshot.json")
            artifact.metadata[path.name] = about.get("weights_sha256")
            artifact.add_reference(path.resolve().as_uri(), name=path.name, checksum=False)
        run.log_artifact(artifact)


def run_identity(root: Path) -> dict[str, Any]:
    """The identity in `run.json`, made on the first call: name, W&B id, creation time, git commit.

    A trial of a W&B sweep has the id that the sweep gave it.

    Raises:
        ValueError: the file is not what this function wrote.
    """
    path = root / "run.json"
    if path.is_file():
        identity = read_json(path)
        for key in ("name", "wandb_id"):
            if not isinstance(identity.get(key), str):
                raise ValueError(f"{path}: no {key!r} in it; put it back, or delete the file for a new W&B page")
        return identity
    identity = {
        "name": root.resolve().name,
        "wandb_id": (in_sweep() and os.environ.get("WANDB_RUN_ID")) or uuid4().hex[:12],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_commit(),
    }
    write_json(path, identity)
    return identity


def in_sweep() -> bool:
    """Whether an agent of a W&B sweep started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def _logged_in() -> bool:
    """Whether credentials are at hand; asks nobody and prompts for nothing."""
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun"):  # a logger of Lightning leaves the second behind
        return False
    import wandb

    return bool(os.environ.get("WANDB_API_KEY")) or bool(wandb.login(prompt=False, verify=False))


def _git_commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, cwd=Path(__file__).parent, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
