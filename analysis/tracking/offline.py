"""What W&B's own files of a run hold: a process that was killed knows no more than what reached the disk.

A `.wandb` file is 7 bytes (`:W&B` and a version) and a log of records in blocks of 32 KiB, as LevelDB writes it: pieces
of CRC-32, length, type (1 whole, 2 first, 3 middle, 4 last) and content; a record is a protobuf message of W&B. A file
that ends in the midst of a record, as after a kill, is read up to there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

MAGIC = b":W&B"
BLOCK = 32 * 1024
PIECE = struct.Struct("<IHB")
WHOLE, FIRST, LAST = 1, 2, 4


def last_row(run_folder: Path, run_id: str) -> int:
    """The highest W&B step in the offline files of a run, -1 without any.

    Sessions follow each other and each is written front to back, so everything up to there is on disk.
    """
    for session in sorted(run_folder.glob(f"wandb/offline-run-*-{run_id}*"), reverse=True):
        steps = [step for file in session.glob("*.wandb") for step in history_steps(file)]
        if steps:
            return max(steps)
    return -1


def history_steps(path: Path) -> Iterator[int]:
    """W&B's step of every history row in a `.wandb` file."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for content in _records(path.read_bytes()):
        record = Record()
        try:
            record.ParseFromString(content)
        except DecodeError:
            return
        if record.HasField("history"):
            yield int(record.history.step.num)


def _records(data: bytes) -> Iterator[bytes]:
    if not data.startswith(MAGIC):
        return
    place, content = 7, b""
    while place + PIECE.size <= len(data):
        left = BLOCK - place % BLOCK
        if left < PIECE.size:
            place += left
            continue
        _, length, kind = PIECE.unpack_from(data, place)
        piece = data[place + PIECE.size : place + PIECE.size + length]
        if kind == 0 or len(piece) < length:
            return
        place += PIECE.size + length
        content = piece if kind in (WHOLE, FIRST) else content + piece
        if kind in (WHOLE, LAST):
            yield content
