"""Documents to one stream of token ids per language, each document opened by `</s>`.

The stream is what training reads in blocks of any length: a document may go on in the next block, and no token is
padding. A special token that occurs literally in a text ("</s>") is encoded as ordinary text (or as an unknown token
where the vocabulary itself spells it, as XGLM's does), so that the separator id
marks document starts and nothing else; document masks (`train.data.batches`) rely on it.

For validation each token also gets the number of UTF-8 bytes of the raw text that it stands for; the separator stands
for none. A byte-level token is its bytes. Any other token covers the text from the end of the tokens before it to its
own end, the last one of a document also what the tokenizer dropped at the end. Either way the bytes of a document sum
to exactly its raw bytes, whatever the tokenizer normalises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # heavy, and processes that only tokenise do without it

# Shapes: S tokens of several documents


@dataclass(frozen=True)
class Packed:
    """A stretch of a token stream."""

    tokens: np.ndarray
    """(S,) token ids, uint16 or uint32."""
    token_bytes: np.ndarray | None
    """(S,) UTF-8 bytes of raw text that each token covers, uint32; None if not asked for."""
    num_bytes: int
    """Bytes of raw text in all."""
    num_documents: int


class Packer:
    """Encodes documents with a fixed tokenizer. Can be pickled, so that other processes can use it."""

    def __init__(
        self, backend_json: str, separator_id: int, unknown_id: int | None, vocab_size: int, num_clones: int = 0
    ) -> None:
        self.separator_id = separator_id
        self.unknown_id = unknown_id
        self.vocab_size = vocab_size * (1 + num_clones)
        """Ids that a stream may hold: the tokenizer's, and as many again for every cloned language."""
        self._arguments = (backend_json, separator_id, unknown_id, vocab_size, num_clones)
        self._backend = Tokenizer.from_str(backend_json)
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self._lengths = _byte_lengths(self._backend, backend_json)
        added = self._backend.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special} | {separator_id}
        self._special = np.array(sorted(special | ({unknown_id} if unknown_id is not None else set())))

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, num_clones: int = 0) -> Packer:
        """Separator = the tokenizer's end-of-text token, with which XGLM opens every text."""
        unknown = None if tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id
        return cls(canonical_json(tokenizer), tokenizer.eos_token_id, unknown, len(tokenizer), num_clones)

    @property
    def dtype(self) -> np.dtype:
        """The smallest type that holds every id: uint16 up to 65,536 tokens, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def pack(self, texts: Sequence[str], *, count_bytes: bool, shift: int = 0) -> Packed:
        """Encode `texts` in order into one stretch of a stream; `shift` is added to all but special tokens."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        length = len(texts) + sum(map(len, encodings))
        tokens = np.empty(length, dtype=self.dtype)
        token_bytes = np.zeros(length, dtype=np.uint32) if count_bytes else None
        place = 0
        for text, encoding in zip(texts, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            if (spelled := ids == self.separator_id).any():
                if self.unknown_id is None:
                    raise ValueError(
                        f"the tokenizer makes its separator of the text {text[:60]!r} and has no unknown token instead"
                    )
                ids[spelled] = self.unknown_id
            if shift:
                ids += shift * ~np.isin(ids, self._special)
            tokens[place] = self.separator_id
            tokens[place + 1 : place + 1 + len(ids)] = ids
            if token_bytes is not None and len(ids):
                token_bytes[place + 1 : place + 1 + len(ids)] = self._bytes(text, encoding)
            place += 1 + len(ids)
        return Packed(tokens, token_bytes, sum(len(text.encode()) for text in texts), len(texts))

    def _bytes(self, text: str, encoding: Encoding) -> np.ndarray:
        if self._lengths is not None:
            counted = self._lengths[encoding.ids]
            if counted.sum() == len(text.encode()):  # not so if the tokenizer adds or drops spaces
                return counted
        return bytes_of_tokens(text, encoding)

    def __reduce__(self) -> tuple:
        return Packer, self._arguments


def canonical_json(tokenizer: PreTrainedTokenizerBase) -> str:
    """The fast tokenizer's definition, the same for the same tokenizer: what hashes and other processes use."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    definition["truncation"] = definition["padding"] = None  # states of the last call, not of the tokenizer
    return json.dumps(definition, sort_keys=False, ensure_ascii=False)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the fast tokenizer's definition."""
    return hashlib.sha256(canonical_json(tokenizer).encode()).hexdigest()


def _byte_lengths(backend: Tokenizer, backend_json: str) -> np.ndarray | None:
    """Bytes of every token (V,) of a byte-level tokenizer, whose tokens are spelled with one character a byte."""
    if (json.loads(backend_json).get("decoder") or {}).get("type") != "ByteLevel":
        return None
    lengths = np.zeros(max(backend.get_vocab().values()) + 1, dtype=np.int64)
    for token, index in backend.get_vocab().items():
        lengths[index] = len(token)
    return lengths


def bytes_of_tokens(text: str, encoding: Encoding) -> np.ndarray:
    """UTF-8 bytes (S,) of `text` that each token of its encoding covers; they sum to all bytes of the text."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    byte_at = np.concatenate([[0], np.cumsum(widths)])  # of every character
    ends = np.maximum.accumulate(np.array([end for _, end in encoding.offsets], dtype=np.int64))
    ends[-1] = len(text)
    return np.diff(byte_at[ends], prepend=0)
