"""The data module: text in many languages to batches, by configuration.

    sources --prepare--> token streams --order(seed, step)--> batches

`train.data.text_module` makes the tokenizer and the prepared text when they are missing (first process only); here the
languages are mixed into training batches that are a pure function of seed and step (`train.data.mixing`), so that a
resumed run needs to know its step and nothing else. What must not change in between is stored in the checkpoint and
compared. A checkpoint must fall between optimizer steps, not between the micro-batches of one. Named in configs as
`data:`; called by `train.cli`.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader

import train.data.sources  # noqa: F401  YAML names its classes by their names alone once they are imported
from train.data.batches import StepLoader, TrainBatches, ValidationBatches
from train.data.decontamination import NGRAM
from train.data.documents import TextSource
from train.data.mixing import ORDER_VERSION, Mixture, SampleOrder, format_mixture
from train.data.text_module import TextModule

logger = logging.getLogger(__name__)


class MultilingualDataModule(TextModule):
    """Packed single-language blocks of many languages, mixed by temperature, weights or budgets.

    Args:
        sources: where text comes from (`train.data.sources.LocalText`, `train.data.sources.HubText`); may overlap in
            languages.
        tokenizer: folder or hub name. A folder that does not exist is made by training one of `vocab_size` tokens.
        cache: folder for prepared text; each set of inputs gets a folder of its own in it.
        prepared: read this folder, written by `python -m train prepare`, instead of preparing `sources`.
        languages: codes to train on; null: all that the sources offer.
        vocab_size: tokens of the tokenizer to train; unused when it exists.
        mixing: shares of the languages.
        block_size: tokens of a training sequence.
        batch_size: sequences per optimizer step, over all devices and accumulated micro-batches.
        seed: of the order of text and languages.
        exclude: files (parquet, JSONL) with a `text` column that is never trained on, such as concept files: neither
            these texts, nor documents with the same `uid` (their translations), nor near copies.
        exclude_ngrams: near copies are documents that share so many words in a row with an excluded text (25 characters
            for 13 words, in proportion, where words are not spaced); 0: none are looked for.
        clones: cloned languages, such as {en2: en}: text of `en` in token ids of its own. Every training document of
            `en` is read in one of the two, held-out text in both; `model.vocab_size` must be the tokenizer's size times
            one more than there are clones.
        num_workers: processes that read batches; 0 reads in the main process.
        prepare_workers: processes that tokenise; 0 uses threads of the main process.
        document_masks: documents of one block do not see each other, and each begins at position 0.
        validation_blocks: blocks per language that are validated on at most; null: all.
        validation_batch_size: sequences per device.
    """

    def __init__(
        self,
        sources: list[TextSource],
        tokenizer: str,
        cache: str = "runs/cache",
        prepared: str | None = None,
        languages: list[str] | None = None,
        vocab_size: int | None = None,
        mixing: Mixture | None = None,
        block_size: int = 1024,
        batch_size: int = 64,
        seed: int = 0,
        exclude: list[str] | None = None,
        exclude_ngrams: int = NGRAM,
        clones: dict[str, str] | None = None,
        num_workers: int = 0,
        prepare_workers: int = 0,
        document_masks: bool = False,
        validation_blocks: int | None = 64,
        validation_batch_size: int = 8,
    ) -> None:
        for name, value, least in (
            ("block_size", block_size, 2),
            ("batch_size", batch_size, 1),
            ("validation_batch_size", validation_batch_size, 1),
            ("validation_blocks", validation_blocks, 1),
            ("num_workers", num_workers, 0),
            ("prepare_workers", prepare_workers, 0),
            ("exclude_ngrams", exclude_ngrams, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"data.{name} must be at least {least}, got {value}")
        super().__init__()
        self.sources = sources
        self.tokenizer_name = tokenizer
        self.cache = Path(cache)
        self.prepared_folder = prepared
        self.requested_languages = languages
        self.requested_vocab_size = vocab_size
        self.seed = seed
        self.exclude = list(exclude or ())
        self.exclude_ngrams = exclude_ngrams
        self.clone_names = dict(sorted((clones or {}).items()))
        self.prepare_workers = prepare_workers
        self.mixing = mixing or Mixture()
        self.block_size = block_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.document_masks = document_masks
        self.validation_blocks = validation_blocks
        self.validation_batch_size = validation_batch_size
        self.allow_changes = False
        """Go on from a checkpoint although what `state_dict` holds differs: `--allow_changes true`."""
        self.changed = False
        """Whether the run goes on with other options, which leaves the course of what lies after its checkpoint."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all devices."""
        return self.batch_size * self.block_size

    # -- text and mixture ---------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Train the tokenizer and tokenise the text if that has not been done; safe to call again."""
        # Names of languages in the mixture are checked before hours of tokenising, not after.
        self.mixing.probabilities(dict.fromkeys(self.languages, 1))
        super().prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared text and check it against the settings; every process does this."""
        if self._prepared is not None:
            return
        super().setup(stage)
        for language, tokens in self.train_tokens.items():
            if tokens < self.block_size:
                raise ValueError(
                    f"{language}: {tokens} tokens of training text are less than one block of {self.block_size}; "
                    "lower data.block_size, give more text or take it from data.languages"
                )
        self.probabilities  # noqa: B018  # an unfit mixture shows here, not at the first batch

    @property
    def probabilities(self) -> dict[str, float]:
        """Share of each language in training."""
        return self.mixing.probabilities(self.train_tokens)

    # -- loaders ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        """Micro-batches of this rank from the trainer's current step to its last."""
        trainer = self._attached_trainer()
        if trainer.max_steps is None or trainer.max_steps < 1:
            raise ValueError("trainer.max_steps must be given: the length of training is counted in optimizer steps")
        if self.num_workers:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the workers' fork
        total = trainer.max_steps * self.tokens_per_step
        for line in format_mixture(self.probabilities, self.train_tokens, total):
            logger.info(line)
        self._check_budget(total)
        batches = self.train_batches(
            num_steps=trainer.max_steps,
            world_size=trainer.world_size,
            rank=trainer.global_rank,
            accumulate=trainer.accumulate_grad_batches,
        )
        return StepLoader(batches, lambda: trainer.global_step, num_workers=self.num_workers)

    def train_batches(self, *, num_steps: int, world_size: int = 1, rank: int = 0, accumulate: int = 1) -> TrainBatches:
        """The batches of one rank, without a trainer."""
        num_blocks = {language: tokens // self.block_size for language, tokens in self.train_tokens.items()}
        return TrainBatches(
            {language: self.prepared_text.tokens(language, "train") for language in self.languages},
            SampleOrder(self.probabilities, num_blocks, self.seed, num_steps * self.batch_size),
            block_size=self.block_size,
            batch_size=self.batch_size,
            separator_id=self.prepared_text.separator_id,
            num_steps=num_steps,
            world_size=world_size,
            rank=rank,
            accumulate=accumulate,
            document_masks=self.document_masks,
        )

    def val_dataloader(self) -> list[DataLoader]:
        """One loader per language, in the order of `validation_languages`."""
        trainer = self._attached_trainer()
        batches = self._validation_batches(trainer.world_size, trainer.global_rank)
        return [DataLoader(one, batch_size=None) for one in batches]

    def _validation_batches(self, world_size: int = 1, rank: int = 0) -> list[ValidationBatches]:
        pad = self.tokenizer.pad_token_id
        return [
            ValidationBatches(
                self.prepared_text,
                language,
                "valid",
                block_size=self.block_size,
                batch_size=self.validation_batch_size,
                max_blocks=self.validation_blocks,
                pad_id=self.prepared_text.separator_id if pad is None else pad,
                world_size=world_size,
                rank=rank,
                document_masks=self.document_masks,
            )
            for language in self.validation_languages
        ]

    def _attached_trainer(self) -> Any:
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer; without one use train_batches()")
        # Lightning fears that workers repeat one another's batches; ours take turns
        warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        return self.trainer

    def _check_budget(self, total: int) -> None:
        budget = sum((self.mixing.token_budget or {}).values())
        if budget and abs(budget - total) > 0.01 * budget:
            logger.warning(
                "the run reads %s tokens, the budgets sum to %s: each language gets its share of the former",
                f"{total:,}",
                f"{budget:,}",
            )

    # -- resuming -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must share with this one for its steps to be the same: the one list of conditions."""
        return {
            "fingerprint": self.fingerprint,
            "languages": list(self.languages),
            "mixing": self.mixing.as_dict(),
            "seed": self.seed,
            "sample_order": ORDER_VERSION,
            "world_size": self.trainer.world_size if self.trainer is not None else 1,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches if self.trainer is not None else 1,
            "batch_size": self.batch_size,
            "block_size": self.block_size,
            "document_masks": self.document_masks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with the state of the checkpoint.

        Raises:
            ValueError: naming what differs, when training is to go on and `allow_changes` is not set; and see
                `check_tokens_per_step`.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        self.check_tokens_per_step(state)
        now = self.state_dict()
        changes = [f"{name} {state.get(name)} -> {now[name]}" for name in now if state.get(name) != now[name]]
        if not changes:
            return
        if not self.allow_changes:
            raise ValueError(
                f"the checkpoint was trained on other batches: {'; '.join(changes)}; "
                "restore the settings, or go on with the new ones by --allow_changes true"
            )
        self.changed = True
        logger.warning("resuming with changed data settings: %s", "; ".join(changes))

    def check_tokens_per_step(self, state: dict[str, Any]) -> None:
        """Refuse to go on with steps of another size than those of the checkpoint with this state.

        Raises:
            ValueError: tokens seen and the place in the text, both functions of the step, would be wrong.
        """
        batch_size, block_size = (state.get(name, getattr(self, name)) for name in ("batch_size", "block_size"))
        if batch_size * block_size != self.tokens_per_step:
            raise ValueError(
                f"a step of the checkpoint took {batch_size * block_size:,} tokens (data.batch_size {batch_size} x "
                f"data.block_size {block_size}) and would take {self.tokens_per_step:,} ({self.batch_size} x "
                f"{self.block_size}), but tokens and the place in the text are counted in steps; keep the product, or "
                "start a new run with a snapshot as model.initial_weights"
            )
