"""The text of a run: which languages and documents, in which tokens; prepared once, then opened by every process.

The half of the data module (`train.datamodule`) that knows nothing of batches, mixtures and the trainer's step.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pytorch_lightning import LightningDataModule
from transformers import PreTrainedTokenizerBase

from babelscope.files import file_sha256
from train.data.clones import as_json, make_clones
from train.data.decontamination import Exclusion, excluded_files, read_exclusion
from train.data.documents import TextSource, collect_texts, resolve_languages
from train.data.packing import tokenizer_hash
from train.data.prepare import Recipe, find_prepared, prepare
from train.data.streams import PreparedText
from train.data.tokenizer import (
    MAX_BYTES,
    ensure_tokenizer,
    format_fertility,
    is_taken,
    load_tokenizer,
    measure_fertility,
)

logger = logging.getLogger(__name__)


class TextModule(LightningDataModule):
    """Sources to prepared text; the options are those of `train.datamodule.MultilingualDataModule`, which sets them."""

    sources: list[TextSource]
    tokenizer_name: str
    cache: Path
    prepared_folder: str | None
    seed: int
    exclude: list[str]
    exclude_ngrams: int
    clone_names: dict[str, str]
    """Original of each cloned language, sorted."""
    prepare_workers: int
    requested_vocab_size: int | None
    requested_languages: list[str] | None
    _languages: tuple[str, ...] | None = None
    _tokenizer: PreTrainedTokenizerBase | None = None
    _prepared: PreparedText | None = None

    # -- what is known before any text is read ------------------------------------------------------------------------

    @property
    def text_languages(self) -> tuple[str, ...]:
        """Languages of training that have text of their own, sorted: all but the cloned ones."""
        if self._languages is None:
            asked = self.requested_languages
            if asked is not None:
                asked = [language for language in asked if language not in self.clone_names]
            if self.prepared_folder is None:
                self._languages = resolve_languages(self.sources, asked)
            else:
                prepared = PreparedText(self.prepared_folder)
                offered = [language for language in prepared.languages if language not in prepared.clones]
                if unknown := sorted(set(asked or ()) - set(offered)):
                    raise ValueError(
                        f"unknown language {', '.join(unknown)}: {self.prepared_folder} has {', '.join(offered)}"
                    )
                self._languages = tuple(sorted(asked or offered))
            make_clones(self.clone_names, self._languages, 0)
        return self._languages

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages of training, clones among them, sorted."""
        return tuple(sorted([*self.text_languages, *self.clone_names]))

    @property
    def clones(self) -> dict[str, dict[str, str | int]]:
        """Original (`of`) and `shift` of the token ids of each cloned language: what a snapshot must say of them."""
        return as_json(make_clones(self.clone_names, self.text_languages, len(self.tokenizer)))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loaded when first asked for; FileNotFoundError if it is neither there nor made by `prepare_data`."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.tokenizer_name)
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Token ids of the text: the tokenizer's size (or what it will be), and as many again for every clone.

        Raises:
            ValueError: a language, or the original of a clone, that the text does not have.
        """
        self.text_languages  # noqa: B018  # before a clone that cannot be asks for a larger model
        return (self._tokens_to_train() or len(self.tokenizer)) * (1 + len(self.clone_names))

    def texts(self, split: str, max_bytes: int = MAX_BYTES) -> dict[str, list[str]]:
        """Raw texts of a split in memory, by language (no clones), excluded ones left out of the training split."""
        exclusion = self.exclusion() if split == "train" else Exclusion()
        return collect_texts(
            self.sources, self.text_languages, split, max_bytes, keep=lambda document: exclusion.rule(document) is None
        )

    def exclusion(self) -> Exclusion:
        """What is never trained on."""
        return read_exclusion(self.exclude, self.exclude_ngrams)

    def _recipe(self) -> Recipe:
        return Recipe(
            self.sources, self.tokenizer, self.text_languages, self.exclude, self.exclude_ngrams, self.clone_names
        )

    # -- preparation --------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Train the tokenizer and tokenise the text if that has not been done; safe to call again."""
        if self.prepared_folder is not None:
            self._check_prepared(PreparedText(self.prepared_folder))
            return
        size = self._tokens_to_train()
        if size is not None and ensure_tokenizer(
            self.tokenizer_name, lambda: self.texts("train"), size, seed=self.seed
        ):
            for line in self.fertility(self.tokenizer).splitlines():
                logger.info(line)
        if self.requested_vocab_size not in (None, len(self.tokenizer)):
            logger.warning(
                "data.vocab_size %s is without effect: %s has %s tokens already; give a new one another data.tokenizer",
                f"{self.requested_vocab_size:,}",
                self.tokenizer_name,
                f"{len(self.tokenizer):,}",
            )
        prepare(self._recipe(), self.cache, workers=self.prepare_workers)

    def fertility(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """A table of how finely a tokenizer cuts the validation text of each language; those without any are named."""
        held_out = self.texts("valid", max_bytes=2**21)
        lines = [f"{language:<10}no text of the split valid" for language, texts in held_out.items() if not texts]
        measured = measure_fertility(tokenizer, {language: texts for language, texts in held_out.items() if texts})
        return "\n".join([format_fertility(measured), *lines])

    def _tokens_to_train(self) -> int | None:
        """Size of a tokenizer that is yet to be trained, None if there is one."""
        there = self._tokenizer is not None or is_taken(self.tokenizer_name)
        return None if there else self.requested_vocab_size

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared text and check it against the settings; every process does this."""
        if self.prepared_folder is not None:
            prepared = PreparedText(self.prepared_folder)
            self._check_prepared(prepared)
        else:
            found = find_prepared(self._recipe(), self.cache)
            if found is None:
                raise FileNotFoundError(
                    f"{self.cache}: the text is not prepared; call prepare_data() or run `python -m train prepare`"
                )
            prepared = found
        self._prepared = prepared
        if missing := sorted(set(self.languages) - set(self.validation_languages)):
            logger.warning("no validation text for %s: no bits per byte there", ", ".join(missing))

    def _check_prepared(self, prepared: PreparedText) -> None:
        if prepared.manifest["tokenizer_sha256"] != tokenizer_hash(self.tokenizer):
            raise ValueError(f"{prepared.folder}: was prepared with another tokenizer than {self.tokenizer_name}")
        if prepared.clones != self.clones:
            raise ValueError(
                f"{prepared.folder}: was prepared with the clones {prepared.clones or 'none'}, but data.clones gives "
                f"{self.clones or 'none'}"
            )
        left_out = {entry["sha256"] for entry in prepared.manifest.get("inputs", ())}
        for path in excluded_files(self.exclude):
            if file_sha256(path) not in left_out:
                raise ValueError(
                    f"{prepared.folder}: was prepared without data.exclude {path}, whose texts may be in it; prepare "
                    "again with it, or take it out"
                )

    # -- what is known of the prepared text ---------------------------------------------------------------------------

    @property
    def prepared_text(self) -> PreparedText:
        if self._prepared is None:
            raise RuntimeError("the data module is not set up: call prepare_data() and setup() first")
        return self._prepared

    @property
    def fingerprint(self) -> str:
        """Hash of the tokenizer and every token of the prepared text."""
        return self.prepared_text.fingerprint

    @property
    def train_tokens(self) -> dict[str, int]:
        """Tokens of training text per language."""
        return {language: self.prepared_text.counts(language, "train")["tokens"] for language in self.languages}

    @property
    def validation_languages(self) -> tuple[str, ...]:
        """Languages in the order of the validation loaders: those that have validation text."""
        return tuple(
            language for language in self.languages if self.prepared_text.counts(language, "valid")["tokens"] > 1
        )
