"""Files inside packages, read as streams: Debian's .deb (an ar archive around a tar) and npm's .tgz."""

from __future__ import annotations

import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_COMPRESSIONS = {"": "", ".xz": "xz", ".gz": "gz", ".bz2": "bz2"}


def read_deb(package: str | Path, wanted: str) -> Iterator[tuple[str, bytes]]:
    """Path and content of the regular files of a .deb whose path matches the regular expression `wanted`.

    Raises:
        ValueError: not a .deb, a compression that this Python cannot read, or a damaged file.
    """
    package = Path(package)
    with package.open("rb") as file:
        if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
            raise ValueError(f"{package}: not a .deb package; delete it and fetch again")
        while len(header := file.read(_AR_HEADER)) == _AR_HEADER:
            try:
                name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
            except ValueError:
                raise ValueError(f"{package}: damaged package; delete it and fetch again") from None
            if name.startswith("data.tar"):
                suffix = name.removeprefix("data.tar")
                if suffix not in _COMPRESSIONS:
                    raise ValueError(f"{package}: {name} has a compression that is not read here; use Debian's package")
                yield from _read_tar(package, file, f"r|{_COMPRESSIONS[suffix]}", wanted)
                return
            file.seek(size + size % 2, 1)  # members are padded to even length
    raise ValueError(f"{package}: no data.tar inside; delete it and fetch again")


def read_tgz(package: str | Path, wanted: str) -> Iterator[tuple[str, bytes]]:
    """The same for a gzipped tar. Raises `ValueError` for a damaged file."""
    package = Path(package)
    with package.open("rb") as file:
        yield from _read_tar(package, file, "r|gz", wanted)


def _read_tar(package: Path, file: BinaryIO, mode: str, wanted: str) -> Iterator[tuple[str, bytes]]:
    pattern = re.compile(wanted)
    try:
        with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
            for member in archive:
                if member.isfile() and pattern.search(member.name):
                    content = archive.extractfile(member)
                    assert content is not None, "regular files have content"
                    yield member.name, content.read()
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{package}: damaged package ({error}); delete it and fetch again") from None
