"""Downloads the pinned packages with the registries' own clients, apt-get and npm; goes on where it stopped.

A package is downloaded into a folder of its own, compared with its pin and then moved into the cache, so that the cache
never holds half a file.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data.corpus.packages import find_package, package_folder, pin_fault
from data.corpus.pins import PINS, Pin

LOGGER = logging.getLogger(__name__)

CLIENTS = {"deb": "apt-get", "npm": "npm"}


def fetch(cache: str | Path, names: Sequence[str], *, any_version: bool = False) -> list[str]:
    """Downloads the named packages that the cache lacks or holds in another version.

    Args:
        any_version: take what the registry has where it no longer has the pinned version.

    Returns:
        the names that were downloaded.

    Raises:
        FileNotFoundError: a client that is needed is not installed.
        ValueError: a download failed, or brought another file than the pinned one.
    """
    missing = [name for name in names if not _is_cached(cache, PINS[name], any_version)]
    for registry in sorted({PINS[name].registry for name in missing}):
        if shutil.which(CLIENTS[registry]) is None:
            first = next(name for name in missing if PINS[name].registry == registry)
            raise FileNotFoundError(
                f"{CLIENTS[registry]} is not installed, and {first} comes from it; run this on Debian bookworm (a "
                f"container will do) with {CLIENTS[registry]}, or copy a filled cache to {cache}"
            )
    LOGGER.info("%d of %d packages are cached", len(names) - len(missing), len(names))
    with tqdm(missing, desc="fetch", unit="package", disable=not missing) as progress:
        for name in progress:
            progress.set_postfix_str(name)
            _download(Path(cache), PINS[name], any_version)
    return missing


def _is_cached(cache: str | Path, pin: Pin, any_version: bool) -> bool:
    path = find_package(cache, pin.name)
    return path is not None and (any_version or pin_fault(path, pin) is None)


def _download(cache: Path, pin: Pin, any_version: bool) -> None:
    folder = package_folder(cache, pin)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{pin.name}.") as scratch:
        fault = _run_client(pin, f"{pin.name}{'=' if pin.registry == 'deb' else '@'}{pin.version}", scratch)
        if fault and any_version:
            LOGGER.warning("%s %s is not to be had (%s); taking the current version", pin.name, pin.version, fault)
            fault = _run_client(pin, pin.name, scratch)
        if fault:
            raise ValueError(
                f"{pin.name} {pin.version}: {CLIENTS[pin.registry]} failed: {fault}; update its package lists, or take "
                f"another version with --any-version"
            )
        files = [path for path in Path(scratch).iterdir() if path.suffix in (".deb", ".tgz")]
        if len(files) != 1:
            raise ValueError(f"{pin.name}: {CLIENTS[pin.registry]} left {len(files)} packages, expected one")
        if (fault := pin_fault(files[0], pin)) and not any_version:
            raise ValueError(f"{fault}; the registry has changed: accept it with --any-version")
        files[0].replace(folder / files[0].name)


def _run_client(pin: Pin, specification: str, folder: str) -> str | None:
    """Runs the download in `folder`; the last line of its complaint if it failed."""
    verb = "download" if pin.registry == "deb" else "pack"
    done = subprocess.run(
        [CLIENTS[pin.registry], verb, specification], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
