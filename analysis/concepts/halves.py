"""The fixed random order of sentences, and the half that each is in: by its key alone, wherever it stands."""

from __future__ import annotations

import hashlib


def hash_order(key: str) -> bytes:
    """Sort key of a fixed random order of sentences, the same in every language."""
    return hashlib.sha256(f"order:{key}".encode()).digest()


def half_of(key: str) -> int:
    """The half, 0 or 1, in which `label` puts a sentence and its translations."""
    return hash_order(key)[-1] & 1
