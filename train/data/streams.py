"""Prepared text on disk: one stream of token ids per language and split, memory-mapped and read in blocks.

    <cache>/<key>/                       one tokenizer and one set of inputs; written by `train.data.prepare`
      manifest.json                      inputs, counts, hashes; written last: the done marker
      shards/00000/es.train.tokens       token ids, little-endian uint16 or uint32
      shards/00000/es.valid.tokens
      shards/00000/es.valid.bytes        uint32: bytes of raw text under each token (valid and test only)
      shards/00000/shard.json            counts and hashes of this shard

The stream of a language is its shards' files one after the other, so no text is lost at the edge of a shard, and the
block size is a view: the same files serve every block size. A reader maps a file when it first needs it; a pickled
reader carries no map, so workers open their own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MANIFEST = "manifest.json"
FORMAT = 2
ENTRIES = {
    "fingerprint": str,
    "tokenizer_sha256": str,
    "languages": dict,
    "clones": dict,
    "vocab_size": int,
    "separator_id": int,
    "dtype": str,
    "shards": list,
}
"""What a manifest must hold to be read."""


def file_name(language: str, split: str, kind: str) -> str:
    """`kind` is "tokens" or "bytes"."""
    return f"{language}.{split}.{kind}"


class TokenStream:
    """Numbers of one language and split, over the files of all shards.

    Args:
        files: in order, with the number of items of each.
        dtype: of the items.
        vocab_size: for token ids: all must be smaller.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], dtype: np.dtype, vocab_size: int | None = None) -> None:
        self._paths = [path for path, count in files if count]
        self._ends = np.cumsum([count for _, count in files if count])
        self._dtype = dtype
        self._vocab_size = vocab_size
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, count: int) -> np.ndarray:
        """Items `start` to `start + count - 1` as int64 (fewer at the end of the stream).

        Raises:
            ValueError: a token that the vocabulary does not have.
        """
        stop = min(start + count, len(self))
        parts = []
        part = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            first = int(self._ends[part - 1]) if part else 0
            end = min(stop, int(self._ends[part]))
            items = self._map(part)[start - first : end - first]
            if self._vocab_size is not None and items.max() >= self._vocab_size:
                raise ValueError(
                    f"{self._paths[part]}: token {items.max()} is outside the vocabulary of {self._vocab_size}: the "
                    "file is damaged; remove the folder and prepare again"
                )
            parts.append(items)
            start, part = end, part + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)

    def _map(self, part: int) -> np.ndarray:
        if part not in self._maps:
            self._maps[part] = np.memmap(self._paths[part], dtype=self._dtype, mode="r")
        return self._maps[part]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": {}}


class PreparedText:
    """What `train.data.prepare` has written to a folder.

    Raises:
        FileNotFoundError: no finished preparation there.
        ValueError: another format, or a file that is not as long as the manifest says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no prepared text here; run `python -m train prepare`")
        try:
            self.manifest: dict = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: not valid JSON ({reason}); remove the folder and prepare again") from None
        found = self.manifest.get("format") if isinstance(self.manifest, dict) else None
        if found != FORMAT:
            raise ValueError(f"{path}: format {found}, this version reads {FORMAT}; prepare again")
        for name, kind in ENTRIES.items():
            if not isinstance(self.manifest.get(name), kind):
                raise ValueError(f"{path}: {name!r} is not there or not {kind.__name__}; prepare again")
        self.fingerprint: str = self.manifest["fingerprint"]
        """Hash of the tokenizer and of every token, in order."""
        self.languages: tuple[str, ...] = tuple(sorted(self.manifest["languages"]))
        """Cloned ones among them."""
        self.clones: dict[str, dict] = self.manifest["clones"]
        """Original (`of`) and `shift` of the token ids of each cloned language."""
        self.vocab_size: int = self.manifest["vocab_size"]
        """Token ids are smaller: the tokenizer's size, and as much again for each clone."""
        self.separator_id: int = self.manifest["separator_id"]
        try:
            self._dtype = np.dtype(self.manifest["dtype"])
            self._check_sizes()
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a manifest of prepared text ({error!r}); prepare again") from None

    def tokens(self, language: str, split: str) -> TokenStream:
        return TokenStream(self._files(language, split, "tokens"), self._dtype, self.vocab_size)

    def token_bytes(self, language: str, split: str) -> TokenStream:
        """Bytes of raw text under each token; splits valid and test only."""
        assert split != "train", "bytes per token are not kept for training text"
        return TokenStream(self._files(language, split, "bytes"), np.dtype(np.uint32))

    def counts(self, language: str, split: str) -> dict[str, int]:
        """`tokens` (separators included), `bytes`, `documents`, and documents `excluded` in all and by each rule."""
        return self.manifest["languages"][language][split]

    def _files(self, language: str, split: str, kind: str) -> list[tuple[Path, int]]:
        name = file_name(language, split, kind)
        return [
            (self.folder / "shards" / shard["name"] / name, shard["files"][name]["items"])
            for shard in self.manifest["shards"]
            if name in shard["files"]
        ]

    def _check_sizes(self) -> None:
        for shard in self.manifest["shards"]:
            for name, entry in shard["files"].items():
                path = self.folder / "shards" / shard["name"] / name
                size = path.stat().st_size if path.is_file() else -1
                if size != entry["size"]:
                    found = "missing" if size < 0 else f"{size} bytes"
                    raise ValueError(
                        f"{path}: {found}, the manifest says {entry['size']}; remove the folder and prepare again"
                    )
