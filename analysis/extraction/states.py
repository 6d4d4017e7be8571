"""States of the residual stream: of sampled tokens for probes, of whole sentences for alignment.

Layer -1 is what enters the first block (embeddings with positions, `hidden_states[0]` of transformers), layer b what
leaves block b (`hidden_states[b + 1]`). The state after the last block is taken *before* the final norm, which
transformers applies to the last entry of `hidden_states`: all layers are then the same quantity.

Which tokens are sampled is a function of (seed, text key, language), never of a global generator, so a live run and a
later one look at the same tokens. Only content tokens count, never padding or special ones. Texts are cut behind their
last sampled token: in a causal model the rest cannot matter.

Shapes:  N tokens (or texts)   D hidden size   B texts of a batch   T tokens of a text
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from analysis.extraction.encoding import Batch, Encoded
from analysis.extraction.options import DEFAULTS, Extraction
from analysis.extraction.passes import Place, all_finite, collect, make_packs
from analysis.extraction.sites import Site
from analysis.snapshots import Snapshot
from analysis.texts import Text

logger = logging.getLogger(__name__)

SENTENCE_POOLINGS = ("mean", "weighted", "last")
_CHUNK = 64  # texts tokenized at once while a sample is being filled


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that is a function of `parts`: reproducible draws without a generator."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True)
class TokenSample:
    """Sampled tokens of several languages; all arrays are (N,) and, but for merged samples, sorted by language."""

    languages: tuple[str, ...]
    encoded: Encoded
    """The texts that hold the tokens, each cut behind its last sampled token."""
    text: np.ndarray
    """Index into `encoded`."""
    position: np.ndarray
    """Position in the encoded text."""
    token: np.ndarray
    """Vocabulary id."""
    language: np.ndarray
    """Index into `languages`."""
    key: np.ndarray
    """Index of the text key: equal for translations of each other."""
    key_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.text)


def sample_tokens(
    snapshot: Snapshot,
    texts: Mapping[str, Sequence[Text]],
    tokens_per_language: int,
    extraction: Extraction = DEFAULTS,
    *,
    tokens_per_text: int = 16,
    seed: int = 0,
) -> TokenSample:
    """Draw up to `tokens_per_language` content tokens of each language, at most `tokens_per_text` of one text.

    Texts are visited in an order given by their keys, so translations are drawn together. A language with less text
    gives fewer tokens.

    Raises:
        ValueError: no language, or a language without texts.
    """
    ids: list[list[int]] = []
    content: list[list[bool]] = []
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("text", "position", "token", "language", "key")}
    keys: dict[str, int] = {}
    if not texts:
        raise ValueError("no languages to sample tokens from")
    for number, (language, entries) in enumerate(texts.items()):
        if not entries:
            raise ValueError(f"no texts in {language!r}")
        ordered = sorted(entries, key=lambda entry: unit_hash(seed, entry.key))
        missing = tokens_per_language
        for start in range(0, len(ordered), _CHUNK):
            chunk = ordered[start : start + _CHUNK]
            encoded = extraction.encode(snapshot, [entry.text for entry in chunk])
            for entry, row, flags in zip(chunk, encoded.ids, encoded.content, strict=True):
                places = np.flatnonzero(flags)
                generator = np.random.default_rng(int(unit_hash(seed, language, entry.key) * 2**53))
                chosen = np.sort(generator.permutation(places)[: min(tokens_per_text, missing)])
                end = int(chosen[-1]) + 1
                columns["text"].append(np.full(len(chosen), len(ids)))
                columns["position"].append(chosen)
                columns["token"].append(np.array(row)[chosen])
                columns["language"].append(np.full(len(chosen), number))
                columns["key"].append(np.full(len(chosen), keys.setdefault(entry.key, len(keys))))
                ids.append(row[:end])
                content.append(flags[:end])
                missing -= len(chosen)
                if missing == 0:
                    break
            if missing == 0:
                break
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    return TokenSample(tuple(texts), Encoded(ids, content), **arrays, key_names=tuple(keys))


def merge_samples(samples: Sequence[TokenSample]) -> tuple[TokenSample, list[slice]]:
    """All samples as one, for a single pass over their texts, and the rows of each; their languages must be the same.

    A text that several samples draw from is there once, as long as the longest needs it.
    """
    place: dict[tuple[int, str], int] = {}
    names: dict[str, int] = {}
    ids: list[list[int]] = []
    content: list[list[bool]] = []
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("text", "position", "token", "language", "key")}
    ends = [0]
    for sample in samples:
        text = np.empty(len(sample.encoded), dtype=np.int64)
        for index, first in zip(*np.unique(sample.text, return_index=True), strict=True):
            row, owner = sample.encoded.ids[index], (int(sample.language[first]), sample.key_names[sample.key[first]])
            number = place.get(owner, len(ids))
            shared = min(len(row), len(ids[number])) if number < len(ids) else 0
            if number == len(ids) or ids[number][:shared] != row[:shared]:  # a key that stands for several texts
                number = place[owner] = len(ids)
                ids.append([])
                content.append([])
            if len(row) > len(ids[number]):
                ids[number], content[number] = row, sample.encoded.content[index]
            text[index] = number
        key = np.array([names.setdefault(name, len(names)) for name in sample.key_names])
        for name in ("position", "token", "language"):
            columns[name].append(getattr(sample, name))
        columns["text"].append(text[sample.text])
        columns["key"].append(key[sample.key])
        ends.append(ends[-1] + len(sample))
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    merged = TokenSample(samples[0].languages, Encoded(ids, content), **arrays, key_names=tuple(names))
    return merged, [slice(*pair) for pair in pairwise(ends)]


def iter_token_states(
    snapshot: Snapshot, sample: TokenSample, sites: Sequence[Site], extraction: Extraction = DEFAULTS
) -> Iterator[tuple[Site, Tensor]]:
    """Yield (site, states (N, D) float32) for every site, in the order of `sites`.

    At most `max_bytes` of states are held at once; if that is less than all sites, the forward pass is repeated.

    Raises:
        ValueError: a state that is not finite (naming the site), a model in training mode, `max_bytes` below one site.
    """
    position = torch.from_numpy(sample.position)
    order = torch.from_numpy(np.argsort(sample.text, kind="stable"))
    bounds = np.searchsorted(sample.text[order.numpy()], np.arange(len(sample.encoded) + 1))

    def take(batch: Batch) -> tuple[Place, Callable[[Site, Tensor], Tensor]]:
        members = [order[bounds[index] : bounds[index + 1]] for index in batch.indices.tolist()]
        row = torch.repeat_interleave(torch.arange(len(members)), torch.tensor([len(part) for part in members]))
        rows = torch.cat(members)
        column = position[rows]
        return (rows,), lambda _, states: states[row.to(states.device), column.to(states.device)].float()

    batches = tuple(extraction.batches(snapshot, sample.encoded))
    yield from _iter_states(snapshot, batches, len(sample), sites, take, extraction)


def iter_sentence_states(
    snapshot: Snapshot, texts: Sequence[str], sites: Sequence[Site], extraction: Extraction
) -> Iterator[tuple[Site, Tensor]]:
    """Yield (site, sentence vectors (N, D) float32) for every site.

    Pooled over content tokens by `mean`, `weighted` (weight t / sum t for the t-th token, which evens out that in a
    causal model later tokens have seen more; Muennighoff 2022, SGPT, used by MEXA) or `last`.

    Raises:
        ValueError: unknown pooling, no texts, a text without content, otherwise as `iter_token_states`.
    """
    pool = extraction.pool
    if pool not in SENTENCE_POOLINGS:
        raise ValueError(f"pool={pool!r}: choose one of {', '.join(SENTENCE_POOLINGS)}")

    def take(batch: Batch) -> tuple[Place, Callable[[Site, Tensor], Tensor]]:
        weights = _sentence_weights(batch.content, pool)
        return (batch.indices,), lambda _, states: torch.einsum("bt,btd->bd", weights.to(states.device), states.float())

    yield from _iter_states(snapshot, extraction.read(snapshot, texts), len(texts), sites, take, extraction)


def _sentence_weights(content: Tensor, pool: str) -> Tensor:
    """Weights (B, T) that sum to 1 over the content tokens of each text."""
    rank = content.cumsum(dim=1)
    if pool == "last":
        return (content & (rank == rank[:, -1:])).float()
    weights = content.float() if pool == "mean" else (content * rank).float()
    return weights / weights.sum(dim=1, keepdim=True)


def _iter_states(
    snapshot: Snapshot,
    batches: Sequence[Batch],
    num_rows: int,
    sites: Sequence[Site],
    take: Callable[[Batch], tuple[Place, Callable[[Site, Tensor], Tensor]]],
    extraction: Extraction,
) -> Iterator[tuple[Site, Tensor]]:
    """Run the body over all texts; `take` says which rows a batch fills and how they come from (B, T, D)."""
    unit_bytes = num_rows * torch.float32.itemsize
    for pack in make_packs(sites, unit_bytes, extraction.max_bytes, split=False):
        shapes = {part.site: (num_rows, part.count) for part in pack}
        held = collect(snapshot.models, batches, shapes, take)
        for part in pack:
            site, states = part.site, held.pop(part.site)
            if not all_finite(states):
                raise ValueError(f"states of {site.module} (layer {site.layer}) hold NaN or infinity: broken weights?")
            yield site, states
