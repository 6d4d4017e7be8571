"""The cache of downloaded packages, and whether they are the pinned ones.

<cache>/deb/<name>_<version>_<architecture>.deb
<cache>/npm/<name>-<version>.tgz
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from babelscope.files import file_sha256
from data.corpus.pins import PINS, Pin

LOGGER = logging.getLogger(__name__)


def package_folder(cache: str | Path, pin: Pin) -> Path:
    """Where packages of this registry lie."""
    return Path(cache) / pin.registry


def find_package(cache: str | Path, name: str) -> Path | None:
    """The file of a package, the pinned version before any other; None if it is not there."""
    pin = PINS[name]
    if pin.registry == "deb":
        found = sorted(package_folder(cache, pin).glob(f"{name}_*.deb"))
    else:
        found = sorted(package_folder(cache, pin).glob(f"{name}-[0-9]*.tgz"))
    pinned = [path for path in found if version_of(path, pin) == pin.version]
    return (pinned or found)[-1] if found else None


def version_of(path: Path, pin: Pin) -> str:
    """The version that the name of a package file tells."""
    if pin.registry == "npm":
        return path.stem.removeprefix(f"{pin.name}-")
    return path.stem.split("_")[1].replace("%3a", ":")  # apt writes the colon of an epoch as %3a


def require_packages(cache: str | Path, names: Iterable[str], *, any_version: bool = False) -> dict[str, Path]:
    """The files of all named packages, their digests compared with the pins.

    Args:
        any_version: warn about other versions instead of refusing them.

    Raises:
        FileNotFoundError: a package is missing.
        ValueError: a package is not the pinned one.
    """
    found: dict[str, Path] = {}
    for name in names:
        path = find_package(cache, name)
        if path is None:
            raise FileNotFoundError(f"{cache}: package {name} is missing; run `python -m data.corpus fetch` first")
        if fault := pin_fault(path, PINS[name]):
            if not any_version:
                raise ValueError(f"{fault}; the corpus would differ: fetch again, or accept it with --any-version")
            LOGGER.warning("%s; the corpus will differ from the published counts", fault)
        found[name] = path
    return found


def pin_fault(path: Path, pin: Pin) -> str | None:
    """How a package file differs from its pin, in words; None if it is the pinned one."""
    if file_sha256(path) == pin.sha256:
        return None
    version = version_of(path, pin)
    if version != pin.version:
        return f"{path.name}: {pin.name} is version {version}, pinned is {pin.version}"
    return f"{path.name}: {pin.name} {version} has another sha256 than its pin (damaged or rebuilt)"
