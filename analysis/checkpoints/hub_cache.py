"""The Hugging Face hub and its local cache, seen as files: list, look up, download, delete.

All calls go through `huggingface_hub`; what it raises becomes one line that names repository and revision. With
`HF_HUB_OFFLINE=1` nothing here touches the network: everything is answered from the cache.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from analysis.checkpoints.weights import choose_weight_files
from babelscope.errors import one_line

LEDGER = "babelscope_fetched.txt"
"""In the repository's cache folder: what sweeps downloaded and therefore may delete again."""


@dataclass(frozen=True)
class RepoFile:
    """One file of a revision. `sha256` is known for large files only."""

    path: str
    size: int | None
    sha256: str | None


def looks_like_hub_id(reference: str) -> bool:
    """Whether `reference` has the form owner/name or owner/name@revision."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", reference) is not None and not reference.startswith(".")


@dataclass(frozen=True)
class Hub:
    """One hub endpoint with one cache folder."""

    endpoint: str | None = None
    """None is the client's default (`HF_ENDPOINT`)."""
    cache_dir: Path | None = None
    """None is the client's default (`HF_HUB_CACHE`)."""

    @property
    def cache(self) -> Path:
        return Path(self.cache_dir if self.cache_dir is not None else constants.HF_HUB_CACHE).expanduser()

    @property
    def offline(self) -> bool:
        return bool(constants.HF_HUB_OFFLINE)

    def repo_folder(self, repo: str) -> Path:
        """Where the client keeps `repo`: refs/, snapshots/<commit>/, blobs/."""
        return self.cache / ("models--" + repo.replace("/", "--"))

    def refs(self, repo: str) -> dict[str, str]:
        """Names of branches and tags -> commits; from the cache when offline.

        Raises:
            FileNotFoundError: no such repository, or nothing of it in the cache.
        """
        if self.offline:
            folder = self.repo_folder(repo) / "refs"
            found = {p.relative_to(folder).as_posix(): p.read_text().strip() for p in folder.rglob("*") if p.is_file()}
            if not found:
                raise FileNotFoundError(f"{repo}: offline (HF_HUB_OFFLINE) and nothing of it in the cache {self.cache}")
            return found
        with told(repo):
            listed = HfApi(endpoint=self.endpoint).list_repo_refs(repo)
        return {ref.name: ref.target_commit for ref in (*listed.tags, *listed.branches)}

    def commit(self, repo: str, revision: str) -> str | None:
        """The commit that the cache knows for `revision`, or None."""
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            return revision
        ref = self.repo_folder(repo) / "refs" / revision
        return ref.read_text().strip() if ref.is_file() else None

    def cached_folder(self, repo: str, revision: str) -> Path | None:
        """The folder of `revision` in the cache, complete or not, or None."""
        commit = self.commit(repo, revision)
        folder = self.repo_folder(repo) / "snapshots" / commit if commit else None
        return folder if folder is not None and folder.is_dir() else None

    def _offline_folder(self, repo: str, revision: str) -> Path:
        folder = self.cached_folder(repo, revision)
        if folder is None:
            raise FileNotFoundError(f"{repo}@{revision}: offline (HF_HUB_OFFLINE) and not in the cache {self.cache}")
        return folder

    def files(self, repo: str, revision: str) -> tuple[str | None, list[RepoFile]]:
        """(commit, files) of a revision; offline those that the cache holds.

        Raises:
            FileNotFoundError: no such repository or revision, or offline and not in the cache.
        """
        if self.offline:
            folder = self._offline_folder(repo, revision)
            return folder.name, [
                RepoFile(p.relative_to(folder).as_posix(), p.stat().st_size, None)
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            ]
        with told(repo, revision):
            info = HfApi(endpoint=self.endpoint).model_info(repo, revision=revision, files_metadata=True)
        return info.sha, [
            RepoFile(s.rfilename, s.size, s.lfs.sha256 if s.lfs is not None else None) for s in info.siblings or []
        ]

    def download(self, repo: str, revision: str, names: Sequence[str]) -> Path:
        """Fetch the files `names` of a revision (those that exist) and return its folder in the cache.

        Raises:
            FileNotFoundError: no such repository or revision, or offline and not in the cache.
            ConnectionError: the transfer failed; finished files stay and are not fetched again.
        """
        if self.offline:
            return self._offline_folder(repo, revision)
        with told(repo, revision):
            return Path(
                snapshot_download(
                    repo,
                    revision=revision,
                    allow_patterns=list(names),
                    cache_dir=self.cache_dir,
                    endpoint=self.endpoint,
                    max_workers=4,
                )
            )

    def fetched(self, repo: str) -> set[str]:
        """Entries (`<commit>/` or `<commit>/<folder>/`) in the cache that sweeps downloaded."""
        ledger = self.repo_folder(repo) / LEDGER
        entries = set(ledger.read_text().splitlines()) if ledger.is_file() else set()
        return {entry for entry in entries if (self.repo_folder(repo) / "snapshots" / entry).is_dir()}

    def note_fetched(self, repo: str, entry: str) -> None:
        """Remember that a sweep downloaded `entry`. One short append, so that processes do not collide."""
        with (self.repo_folder(repo) / LEDGER).open("a") as ledger:
            ledger.write(entry + "\n")

    def bytes_of(self, repo: str, entries: set[str]) -> int:
        """Disk that the blobs of `entries` take together; a blob that two of them share counts once."""
        blobs: dict[Path, int] = {}
        for entry in entries:
            for link in (self.repo_folder(repo) / "snapshots" / entry).rglob("*"):
                if link.is_file():
                    blobs[link.resolve()] = link.stat().st_size
        return sum(blobs.values())

    def evict(self, repo: str, entry: str) -> None:
        """Delete an entry from the cache; blobs that other revisions or folders use stay."""
        snapshots = self.repo_folder(repo) / "snapshots"
        links = [path for path in (snapshots / entry).rglob("*") if path.is_symlink() or path.is_file()]
        blobs = {link.resolve() for link in links if link.is_symlink()}
        shutil.rmtree(snapshots / entry)
        still_used = {path.resolve() for path in snapshots.rglob("*") if path.is_symlink()}
        for blob in blobs - still_used:
            blob.unlink(missing_ok=True)


def weights_digest(files: Sequence[RepoFile], folder: str = "") -> str | None:
    """Digest over the weight files as the hub lists them, or None where it does not list their hashes."""
    by_name = {file.path.removeprefix(folder): file for file in files if file.path.startswith(folder)}
    chosen = [by_name[name] for name in choose_weight_files(by_name) if not name.endswith(".json")]
    if not chosen or any(file.sha256 is None for file in chosen):
        return None
    return hashlib.sha256("".join(file.sha256 or "" for file in chosen).encode()).hexdigest()


@contextmanager
def told(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the client raises into one line with the repository's name."""
    what = repo if revision is None else f"{repo}@{revision}"
    try:
        yield
    except RevisionNotFoundError:
        raise FileNotFoundError(f"{what}: no such revision") from None
    except GatedRepoError:
        raise PermissionError(f"{what}: access must be granted on the hub first, then log in (hf auth login)") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(f"{what}: no such repository, or private (hf auth login)") from None
    except HFValidationError as error:
        raise ValueError(f"{what}: {one_line(error)}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(f"{what}: not in the cache and not to be had: {one_line(error)}") from None
    except HfHubHTTPError as error:
        raise ConnectionError(f"{what}: the hub failed, run again to go on: {one_line(error)}") from None
    except OSError as error:
        raise ConnectionError(f"{what}: the transfer failed, run again to go on: {one_line(error)}") from None
    except Exception as error:
        # The client's transport (httpx, under a changing module name) raises classes of its own.
        if "httpx" not in type(error).__module__:
            raise
        raise ConnectionError(f"{what}: the hub cannot be reached: {one_line(error)}") from None
