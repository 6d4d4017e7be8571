"""What all sources on disk or on the hub share: a list of checkpoints, and opening one as a `Snapshot`.

A source knows its checkpoints by step. Opening one is always the same: fetch the files, load config, weights and
tokenizer with the checks of `analysis.checkpoints.loading`, free the model afterwards. Subclasses in
`analysis.checkpoints.local` and `analysis.checkpoints.hub` say where the files are. Libraries that take seconds to
import wait until a model is opened, so that `--help` does not.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.checkpoints.hub_cache import Hub, looks_like_hub_id
from analysis.checkpoints.names import Naming, summarize_steps
from analysis.checkpoints.options import Loading, release
from analysis.checkpoints.weights import find_weight_files, iter_tensors
from analysis.snapshots import Snapshot, SnapshotId, read_clones
from babelscope.files import file_sha256

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model"),
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint as far as it is known without loading it."""

    id: SnapshotId
    name: str
    """Revision, folder or file, as its authors call it."""
    size: int | None = None
    """Bytes of the weight files; None if unknown without a download."""
    cached: bool = True
    """All its files are on this machine."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """What identifies the content cheaply (commit, hash in a manifest). A result stamped with another mark is stale."""
    digest: str | None = None
    """Digest over the weight files where it is known without reading them: equal digests are duplicates."""


@dataclass(kw_only=True)
class CheckpointSource(ABC):
    """Base of the sources that a config file can name."""

    run: str = ""
    """Name of the run in tables and figures; empty takes the source's own name."""
    tokenizer: str | None = None
    """Folder or hub id (`owner/name`, `owner/name@revision`) where no tokenizer lies beside the weights."""
    prefix_token: str | None = None
    """Token put before every text where the tokenizer adds none (`</s>` for BLOOM); None keeps the tokenizer's rule."""
    naming: Naming = field(default_factory=Naming)
    """How step and tokens are read from names."""
    loading: Loading = field(default_factory=Loading)
    """Precision, device and architecture."""
    random_baseline: bool = False
    """Add step 0 for a suite without one: the suite's config with random weights."""
    _listed: tuple[Checkpoint, ...] | None = field(default=None, init=False, repr=False)
    _tokenizers: dict[str, PreTrainedTokenizerBase] = field(default_factory=dict, init=False, repr=False)

    @property
    def origin(self) -> str:
        """Folder or repository that the checkpoints come from; empty if it tells nothing."""
        return ""

    @abstractmethod
    def list_checkpoints(self) -> Sequence[Checkpoint]:
        """Find all checkpoints, in any order; called once."""

    @abstractmethod
    def fetch(self, checkpoint: Checkpoint) -> Path:
        """The path of the checkpoint's files on this machine, after a download if they are not there."""

    def fetch_config(self, checkpoint: Checkpoint) -> Path:
        """A folder with the config.json of `checkpoint`; does not fetch weights where that can be avoided."""
        return self.fetch(checkpoint)

    def config_folder(self, checkpoint: Checkpoint, path: Path) -> Path:
        """The folder of config, tokenizer and cloned languages of a checkpoint, whose files are in `path`."""
        return path if path.is_dir() else path.parent

    def fits(self, checkpoint: Checkpoint) -> bool:
        """Whether there is room to fetch `checkpoint` while another is in use."""
        return True

    def finish(self, checkpoint: Checkpoint) -> None:
        """Told by the sweep that `checkpoint` is no longer needed; sources that download may delete it."""
        return

    def describe(self, checkpoint: Checkpoint) -> Checkpoint:
        """`checkpoint` with size, commit and digest filled in as far as a look-up without download can."""
        return checkpoint

    def marks(self, checkpoint: Checkpoint) -> dict[str, str]:
        """What tells the content of a fetched checkpoint cheaply, see `Checkpoint.marks`."""
        return dict(checkpoint.marks)

    def config_marks(self, checkpoint: Checkpoint) -> dict[str, str]:
        """What tells the config of `checkpoint`, which the random baseline has, from that of another suite."""
        return {}

    @cached_property
    def reading(self) -> dict[str, str | None]:
        """What numbers depend on beside the content of a checkpoint: precision, class, tokenizer, prefix token."""
        tokenizer, folder = self.tokenizer, Path(self.tokenizer or "")
        if tokenizer is not None and folder.is_dir():  # its content counts, wherever it lies
            digests = [f"{name} {file_sha256(folder / name)}" for name in TOKENIZER_FILES if (folder / name).is_file()]
            tokenizer = f"sha256:{hashlib.sha256(' '.join(digests).encode()).hexdigest()}"
        loading = self.loading
        chosen = {"dtype": loading.dtype, "architecture": loading.architecture}
        return {**chosen, "tokenizer": tokenizer, "prefix_token": self.prefix_token}

    def load(self, checkpoint: Checkpoint, path: Path) -> PreTrainedModel:
        """The model in `path`, the value of `fetch`."""
        from analysis.checkpoints.loading import load_model

        return load_model(path, self.label(checkpoint), self.loading)

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All checkpoints by step, with the random baseline if it is asked for.

        Raises:
            FileNotFoundError: there is none.
            ValueError: two share a step, or a baseline is asked for although the suite has a step 0.
        """
        if self._listed is None:
            found = sorted(self.list_checkpoints(), key=lambda checkpoint: checkpoint.id.step)
            for one, other in pairwise(found):
                if one.id.step == other.id.step:
                    raise ValueError(
                        f"{one.id.run}: {one.name} and {other.name} both are step {one.id.step}; "
                        "choose among them, or set naming.step_pattern"
                    )
            if self.random_baseline:
                if found and found[0].id.step == 0:
                    raise ValueError(f"{found[0].id.run}: has a step 0 of its own; leave random_baseline out")
                marks = {"seed": "0", **self.config_marks(found[0])}
                baseline = Checkpoint(id=SnapshotId(found[0].id.run, 0, 0), name="random", size=0, marks=marks)
                found.insert(0, baseline)
            self._listed = tuple(found)
        return self._listed

    def ids(self) -> Sequence[SnapshotId]:
        """All snapshots, ordered by step."""
        return [checkpoint.id for checkpoint in self.checkpoints()]

    def find(self, snapshot_id: SnapshotId) -> Checkpoint:
        """The checkpoint with this id.

        Raises:
            ValueError: there is none.
        """
        for checkpoint in self.checkpoints():
            if checkpoint.id == snapshot_id:
                return checkpoint
        steps = summarize_steps([checkpoint.id.step for checkpoint in self.checkpoints()])
        raise ValueError(f"{snapshot_id.run}: no checkpoint for step {snapshot_id.step}; there are {steps}")

    def is_baseline(self, checkpoint: Checkpoint) -> bool:
        """Whether this is the random network that no file holds."""
        return self.random_baseline and checkpoint.id.step == 0

    def label(self, checkpoint: Checkpoint) -> str:
        """How messages call a checkpoint."""
        return f"{checkpoint.id.run} step {checkpoint.id.step} ({checkpoint.name})"

    @contextmanager
    def open(self, snapshot_id: SnapshotId) -> Iterator[Snapshot]:
        """Load one snapshot; the model is freed when the context exits.

        Raises:
            FileNotFoundError: files that are not there.
            ValueError: files that are damaged, refused or do not fit together. Both name the checkpoint.
        """
        from analysis.checkpoints.loading import build_random, check_fit
        from analysis.extraction.replicas import replicate

        checkpoint = self.find(snapshot_id)
        name = self.label(checkpoint)
        if self.is_baseline(checkpoint):
            checkpoint = self.checkpoints()[1]
            folder = self.fetch_config(checkpoint)
            tokenizer = self.load_tokenizer(checkpoint, folder)
            model = build_random(folder, name, self.loading, seed=0)
        else:
            folder = self.fetch(checkpoint)
            if not folder.exists():
                raise FileNotFoundError(f"{name}: {folder} is not there any more")
            tokenizer = self.load_tokenizer(checkpoint, folder)
            model = self.load(checkpoint, folder)
        try:
            vocabulary = model.config.get_text_config().vocab_size
            clones = read_clones(self.config_folder(checkpoint, folder), vocabulary)
            shift = max((clone.shift for clone in clones.values()), default=0)
            check_fit(model, tokenizer, name, strict=self.loading.check_tokenizer, shift=shift)
            copies = [replicate(model, device) for device in self.loading.devices[1:]]
            yield Snapshot(snapshot_id, model, tokenizer, tuple(copies), clones)
        finally:
            del model
            copies = []
            release()

    def load_tokenizer(self, checkpoint: Checkpoint, path: Path) -> PreTrainedTokenizerBase:
        """The suite's tokenizer if one is named, else the one beside the weights."""
        from analysis.checkpoints.loading import load_tokenizer

        reference = str(self.tokenizer_folder(checkpoint, path))
        if self.tokenizer is None or reference not in self._tokenizers:
            self._tokenizers[reference] = load_tokenizer(
                Path(reference), self.label(checkpoint), prefix_token=self.prefix_token, **self.tokenizer_options()
            )
        return self._tokenizers[reference]

    def tokenizer_folder(self, checkpoint: Checkpoint, path: Path) -> Path:
        """Where the tokenizer's files are.

        Raises:
            FileNotFoundError: none is named and none lies beside the weights, or the named one cannot be had.
        """
        if self.tokenizer is None:
            folder = self.config_folder(checkpoint, path)
            if not any((folder / file).is_file() for file in TOKENIZER_FILES):
                raise FileNotFoundError(
                    f"{self.label(checkpoint)}: no tokenizer beside the weights; set 'tokenizer' to a folder or hub id"
                )
            return folder
        if Path(self.tokenizer).is_dir():
            return Path(self.tokenizer)
        if not looks_like_hub_id(self.tokenizer):
            raise FileNotFoundError(f"tokenizer {self.tokenizer}: no such folder, and not a hub id (owner/name)")
        repo, _, revision = self.tokenizer.partition("@")
        return self.hub.download(repo, revision or "main", ["config.json", *TOKENIZER_FILES])

    def tokenizer_options(self) -> dict[str, str]:
        """Further arguments for the tokenizer's loader."""
        return {}

    def tensors(self, checkpoint: Checkpoint, path: Path) -> Iterator[tuple[str, Tensor]]:
        """Name and content of every weight as stored; `path` is the value of `fetch`."""
        name = self.label(checkpoint)
        return iter_tensors(find_weight_files(path, name), name)

    @property
    def hub(self) -> Hub:
        """The hub that a tokenizer given by id comes from."""
        return Hub()
