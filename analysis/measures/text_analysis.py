"""Bases of the measures that read texts by language: their common options, the texts read once, and token samples.

Shapes:  N sampled tokens   D hidden size
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from analysis.base import Analysis, Kept, Row
from analysis.concepts.concept_set import ConceptSet
from analysis.concepts.dataset import concept_files, load_concepts
from analysis.concepts.file import lexicon_path
from analysis.cost import Shape
from analysis.extraction.options import Extraction, context_length
from analysis.extraction.sites import Site, find_sites
from analysis.extraction.states import TokenSample, iter_token_states, sample_tokens
from analysis.probes.folds import Fold, make_folds
from analysis.snapshots import Snapshot
from analysis.statistics import mean_interval, merge_clusters
from analysis.texts import Text, shared_texts, text_sizes
from babelscope.files import file_sha256, file_stamp
from babelscope.records import Clone

logger = logging.getLogger(__name__)

EXTRACTION_OPTIONS = tuple(option.name for option in fields(Extraction))
BEYOND_SAMPLE = 1.2
"""Tokens read for each that is drawn, where many are drawn from one text."""


def vocabulary(snapshot: Snapshot) -> int:
    """Token ids that a text may have: the tokenizer's, and those of the cloned languages."""
    return len(snapshot.tokenizer) + max((clone.shift for clone in snapshot.clones.values()), default=0)


def shown_layers(wanted: Sequence[int] | None, sites: Sequence[Site]) -> list[int]:
    """Layers among those of `sites` that are given; None means embeddings, middle and last.

    Raises:
        ValueError: a layer that the model does not have.
    """
    have = [site.layer for site in sites]
    chosen = {-1, have[-1] // 2, have[-1]} if wanted is None else set(wanted)
    if unknown := chosen - set(have):
        raise ValueError(f"no layer {min(unknown)}: the model has {have[0]} (embeddings) to {have[-1]}")
    return sorted(chosen)


def mean_row(metric: str, values: np.ndarray, clusters: np.ndarray, **where: Any) -> Row:
    """Mean over concepts (C,) with Student's interval over their clusters (C,), see `ConceptSet.clusters`.

    `where` are other fields of `Row`; chance is 0 if not given.
    """
    low, high = mean_interval(merge_clusters(values, clusters))
    return replace(Row(metric=metric, value=values.mean(), chance=0.0, low=low, high=high), **where)


@dataclass(kw_only=True)
class ReadingAnalysis(Analysis):
    """Base of the measures that read texts through the model."""

    @property
    def extraction(self) -> Extraction:
        """How: by those of the analysis's own options that a pass has, else by its defaults."""
        return Extraction(**{name: getattr(self, name) for name in EXTRACTION_OPTIONS if hasattr(self, name)})


@dataclass(kw_only=True)
class TextAnalysis(ReadingAnalysis):
    """Base of the measures on texts of several languages."""

    texts: str
    """Texts by language, parquet or JSONL (see `analysis.texts`); translations share a key."""
    splits: list[str] = field(default_factory=lambda: ["valid", "test"])
    """Splits to draw from: text that the model did not train on."""
    languages: list[str] = field(default_factory=list)
    """ISO 639-1 codes; empty means all languages of the file."""
    max_length: int = 128
    """Tokens after which a text is cut."""
    batch_tokens: int = 4096
    """Tokens per forward pass, padding included."""

    min_languages: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._kept = Kept()

    def read(self, snapshot: Snapshot) -> dict[str, list[Text]]:
        """Texts of every language, clones of the snapshot among them; not to be changed.

        Raises:
            FileNotFoundError, ValueError: see `read_texts`; or a file with too few languages.
        """
        found = shared_texts(self.texts, self.languages, self.splits, snapshot.clones)
        if len(found) < self.min_languages:
            raise ValueError(f"{self.name}: {self.texts} has only {', '.join(found)}; two languages are needed")
        return found

    def sample(self, snapshot: Snapshot, tokens_per_language: int, tokens_per_text: int, seed: int) -> TokenSample:
        """`sample_tokens` from all languages in alphabetical order, once for all snapshots with this tokenizer."""

        def draw() -> TokenSample:
            texts = dict(sorted(self.read(snapshot).items()))
            return sample_tokens(
                snapshot, texts, tokens_per_language, self.extraction, tokens_per_text=tokens_per_text, seed=seed
            )

        found: TokenSample = self._kept.get(self._depends_on(snapshot), draw)
        return found

    def _depends_on(self, snapshot: Snapshot) -> tuple[Hashable, ...]:
        """What is made of the texts alone depends on, beside the options: the same for all snapshots of a run, until
        the file changes."""
        length = context_length(snapshot.model, self.max_length)
        return file_stamp(self.texts), snapshot.tokenizer_hash, tuple(snapshot.clones.items()), length

    def num_tokens(self, shape: Shape, count: int | None = None) -> tuple[int, float]:
        """Languages, and tokens of the first `count` texts of each (None: of all), about."""
        found: dict[str, list[int]] = {}
        for (language, split), sizes in text_sizes(self.texts).items():
            if language in (self.languages or [language]) and split in (self.splits or [split]):
                found.setdefault(language, []).extend(sizes)
        return len(found), sum(shape.tokens(sizes[:count], self.max_length) for sizes in found.values())


@dataclass(kw_only=True)
class LabelledAnalysis(ReadingAnalysis):
    """Base of the measures on labelled sentences."""

    concepts: str
    """Concept file: parquet, JSONL, or a folder of ml-selfcond."""
    languages: list[str] = field(default_factory=list)
    """ISO 639-1 codes; none means all of the file."""
    pool: str = "max"
    """From tokens to one number of a unit, or to one vector, per sentence; over tokens that are neither padding nor
    special."""
    min_positives: int = 10
    """Least number of positives of a concept in a language."""
    seed: int = 0
    """Of shuffles, bootstrap and random units."""
    batch_tokens: int | None = None
    """Tokens per forward pass, padding included; none chooses by device and width of the model."""
    max_bytes: int = 2**30
    """Bytes of responses or sentence vectors held at once; fewer mean more forward passes."""

    folders: ClassVar[Mapping[str, str]] = MappingProxyType({"concepts": "**/*.json"})


@dataclass(kw_only=True)
class ConceptAnalysis(LabelledAnalysis):
    """Base of those that compare two languages or more."""

    max_length: int = 512
    """Tokens after which a sentence is cut."""

    min_languages: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._kept = Kept()

    def load(self, clones: Mapping[str, Clone], **chosen: Any) -> ConceptSet:
        """The labelled sentences, those of a model's clones among them; read again only if clones or files change.

        Args:
            chosen: further options of the reader, always the same ones.

        Raises:
            FileNotFoundError, ValueError: see `load_concepts`; or a file with too few languages.
        """

        def read() -> ConceptSet:
            options = {"languages": self.languages, "min_positives": self.min_positives, "clones": clones, **chosen}
            return load_concepts(self.concepts, **options)

        stamps = tuple(map(file_stamp, concept_files(self.concepts)))
        found: ConceptSet = self._kept.get((stamps, tuple(clones.items())), read)
        if len(found.languages) < self.min_languages:
            raise ValueError(f"{self.name}: {self.concepts} has only {found.languages[0]!r}; two languages are needed")
        return found


@dataclass(kw_only=True)
class WordAnalysis(LabelledAnalysis):
    """Base of those that look for the words of concepts in texts."""

    lexicon: str | None = None
    """Words of the concepts by language; None means the file that the labelling command wrote beside `concepts`."""
    only_concepts: list[str] = field(default_factory=list)
    """Concepts to use; none means all of the file."""

    @property
    def lexicon_file(self) -> str:
        return self.lexicon or str(lexicon_path(self.concepts))

    def settings(self) -> dict[str, object]:
        lexicon = Path(self.lexicon_file)
        digest = f"sha256:{file_sha256(lexicon)}" if lexicon.is_file() else None
        return {**super().settings(), "lexicon": digest}


@dataclass(kw_only=True)
class StateAnalysis(TextAnalysis):
    """Base of the measures on states of the residual stream."""

    max_bytes: int = 2**30
    """Bound on the states held at once."""


@dataclass(kw_only=True)
class TokenProbe(StateAnalysis):
    """Base of the probes: settings of the token sample and of its division."""

    tokens_per_language: int = 1000
    """Training tokens of each language."""
    test_tokens_per_language: int = 500
    """Test tokens of each language."""
    tokens_per_text: int = 20
    """Tokens drawn from one text at most: more texts make more independent observations."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """One probe per seed, each on tokens of its own and with its own division of the sentences."""

    positive: ClassVar[tuple[str, ...]] = (
        "tokens_per_language",
        "test_tokens_per_language",
        "tokens_per_text",
        "max_length",
    )
    not_negative: ClassVar[tuple[str, ...]] = (*StateAnalysis.not_negative, "seeds")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"{self.name}: seeds={self.seeds} must be different numbers, at least one")

    def draw(self, snapshot: Snapshot) -> tuple[TokenSample, list[Fold]]:
        """Sample tokens for every seed, a tenth more than needed so that folds can be balanced, and divide them.

        Probes of equal settings share one draw; it is kept for the next snapshot with this tokenizer.

        Raises:
            FileNotFoundError, ValueError: see `read` and `make_folds`.
        """
        key = self._sample_key()
        if key not in snapshot.shared:
            snapshot.shared[key] = self._kept.get(self._depends_on(snapshot), lambda: self._draw(snapshot))
        sample, folds = snapshot.shared[key]
        return sample, folds

    def states(self, snapshot: Snapshot, layers: Collection[int] | None = None) -> Iterator[tuple[Site, Tensor]]:
        """States (N, D) float32 of the drawn tokens at `layers` (None: every layer), embeddings first; not to be
        changed in place.

        They are kept for the next probe of this snapshot if those of all layers fit into half of `max_bytes`.

        Raises:
            ValueError: see `iter_token_states`.
        """
        sample, _ = self.draw(snapshot)
        sites = [site for site in find_sites(snapshot.model, "hidden") if layers is None or site.layer in layers]
        kept = snapshot.shared.setdefault(("states", *self._sample_key()), {})
        if all(site in kept for site in sites):
            yield from ((site, kept[site]) for site in sites)
            return
        keep = sum(site.num_units for site in sites) * len(sample) * torch.float32.itemsize <= self.max_bytes // 2
        for site, states in iter_token_states(snapshot, sample, sites, self.extraction):
            if keep:
                kept[site] = states
            yield site, states

    def read_tokens(self, shape: Shape) -> tuple[int, float]:
        """Languages, and tokens that one pass over the drawn texts reads, about: a text is read to its last token."""
        languages, available = self.num_tokens(shape)
        wanted = 1.1 * (self.tokens_per_language + self.test_tokens_per_language) * languages * len(self.seeds)
        return languages, min(available, BEYOND_SAMPLE * wanted)

    def _sample_key(self) -> tuple[Hashable, ...]:
        """What the draw depends on."""
        numbers = self.tokens_per_language, self.test_tokens_per_language, self.tokens_per_text, self.max_length
        return ("tokens", self.texts, tuple(self.splits), tuple(self.languages), *numbers, tuple(self.seeds))

    def _draw(self, snapshot: Snapshot) -> tuple[TokenSample, list[Fold]]:
        wanted = int(1.1 * (self.tokens_per_language + self.test_tokens_per_language))
        samples = [
            sample_tokens(
                snapshot, self.read(snapshot), wanted, self.extraction, tokens_per_text=self.tokens_per_text, seed=seed
            )
            for seed in self.seeds
        ]
        sample, folds = make_folds(samples, self.seeds, self.tokens_per_language, self.test_tokens_per_language)
        given = int(folds[0].train.sum()) // len(sample.languages)
        if given < self.tokens_per_language:
            logger.info("%s: %d training tokens per language (%d wanted)", self.name, given, self.tokens_per_language)
        return sample, folds
