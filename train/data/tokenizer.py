"""A byte-level BPE tokenizer for many languages, and how well it treats each of them.

Byte-level BPE (as in GPT-2 and BLOOM) over 256 base tokens: nothing is ever unknown and every text comes back exactly.
On ten languages in five scripts it gave 3.21 bytes per token at a vocabulary of 8,192, a unigram model 2.90 without
being reversible. Words are cut by a pattern that keeps combining marks (the vowel signs of Hindi, Tamil, Bengali ...)
with their letters; GPT-2's own pattern tears them apart.
Special ids and the leading `</s>` are those of XGLM, so that a model of that class needs no other setting.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from babelscope.errors import one_line
from babelscope.files import is_leftover, new_folder, remove_leftovers
from train.data.documents import is_unspaced
from train.data.mixing import temperature_shares

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
"""In order of their ids 0, 1, 2, 3, as in XGLM."""

WORDS = (
    r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+"  # a word with its combining marks and at most one sign or space before it
    r"|\p{N}{1,3}"  # numbers in groups, so that they do not fill the vocabulary
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where merges must stop: GPT-4's pattern with \\p{M} counted as part of a word."""

MAX_BYTES = 256 * 2**20
"""Merges are counted on this much text at most: more changes them little and costs memory."""
LARGEST_VOCABULARY = 10_000_000
"""Most tokens to train: the library makes room for all of them at once, and aborts the process if it cannot."""


def train_tokenizer(
    texts_by_language: Mapping[str, Iterable[str]],
    vocab_size: int,
    *,
    alpha: float = 0.3,
    max_bytes: int = MAX_BYTES,
    seed: int = 0,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of exactly `vocab_size` tokens (special tokens included).

    Language l supplies a share n_l^alpha / sum of n^alpha of the training text, where n_l is its size in bytes
    (Conneau et al. 2020, section 3.1), by repeating the texts of small languages and leaving out some of large ones.

    Args:
        texts_by_language: texts of the training split; at most `max_bytes` bytes of each language are read.
        alpha: 1 keeps the sizes as they are, 0 makes all languages equal.
        max_bytes: upper limit of the text on which merges are counted, in bytes.
        seed: order in which texts of a language are chosen.

    Raises:
        ValueError: a language without text; `vocab_size` too small for 256 bytes, or larger than the text supports;
            `alpha` outside [0, 1].
    """
    check_request(vocab_size, alpha)
    if not texts_by_language:
        raise ValueError("no language to train a tokenizer on")
    sample = _sample(texts_by_language, alpha=alpha, max_bytes=max_bytes, seed=seed)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(sample, trainer, length=len(sample))
    if (size := backend.get_vocab_size()) != vocab_size:
        raise ValueError(f"the text supports only {size} tokens: set vocab_size to {size} or give more text")
    separator = SPECIAL_TOKENS.index("</s>")
    backend.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> </s> $B", special_tokens=[("</s>", separator)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def check_request(vocab_size: int, alpha: float) -> None:
    """Refuse what cannot be trained, before any text is read.

    Raises:
        ValueError: see `train_tokenizer`.
    """
    smallest = len(SPECIAL_TOKENS) + 256
    if vocab_size < smallest:
        raise ValueError(f"vocab_size {vocab_size} is too small: {smallest} tokens are bytes and special tokens")
    if vocab_size > LARGEST_VOCABULARY:
        raise ValueError(f"vocab_size {vocab_size} is too large: use up to {LARGEST_VOCABULARY:,}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"tokenizer: alpha must lie in [0, 1], got {alpha}")


def _sample(texts_by_language: Mapping[str, Iterable[str]], *, alpha: float, max_bytes: int, seed: int) -> list[str]:
    """Texts whose languages have the shares n_l^alpha; as many bytes as there are, at most `max_bytes`."""
    read: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for language, texts in sorted(texts_by_language.items()):
        read[language], sizes[language] = [], 0
        for text in texts:
            read[language].append(text)
            sizes[language] += len(text.encode())
            if sizes[language] >= max_bytes:
                logger.warning("tokenizer: only the first %d bytes of %s are used", sizes[language], language)
                break
        if not sizes[language]:
            raise ValueError(f"no text for language {language!r} to train a tokenizer on")
    budget = min(sum(sizes.values()), max_bytes)
    sample: list[str] = []
    for language, share in temperature_shares(sizes, alpha).items():
        order = random.Random(f"{seed}/{language}").sample(read[language], len(read[language]))
        left = round(share * budget)
        for text in itertools.cycle(order):
            if left <= 0:
                break
            sample.append(text)
            left -= max(1, len(text.encode()))
    return sample


def is_taken(folder: str | Path) -> bool:
    """Whether something is there that must not be overwritten; leftovers of a killed writer do not count."""
    folder = Path(folder)
    return folder.is_file() or (folder.is_dir() and not all(is_leftover(path) for path in folder.iterdir()))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save as a transformers folder, all files or none: written beside and moved into place.

    Raises:
        ValueError: something is there.
    """
    folder = Path(folder)
    if is_taken(folder):
        raise ValueError(f"{folder}: not empty; choose another folder or remove it")
    with new_folder(folder) as temporary:
        tokenizer.save_pretrained(temporary)


def ensure_tokenizer(
    folder: str | Path,
    texts: Callable[[], Mapping[str, Iterable[str]]],
    vocab_size: int,
    *,
    alpha: float = 0.3,
    seed: int = 0,
) -> bool:
    """Train and save a tokenizer unless `folder` holds something; of several processes one works and the others wait.

    Returns:
        Whether this call trained it.

    Raises:
        ValueError: see `train_tokenizer`; what cannot be trained is refused before `texts` is called.
    """
    folder = Path(folder)
    check_request(vocab_size, alpha)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if is_taken(folder):
            return False
        remove_leftovers(folder.parent, folder.name)
        logger.info("training a tokenizer of %d tokens for %s", vocab_size, folder)
        save_tokenizer(train_tokenizer(texts(), vocab_size, alpha=alpha, seed=seed), folder)
        return True


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a local folder or the hub. Remote code is never run.

    Raises:
        FileNotFoundError: neither a local tokenizer folder nor reachable on the hub.
        ValueError: not a fast tokenizer, or without an end-of-text token to separate documents.
    """
    path = Path(name_or_path)
    if path.is_dir() and not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise FileNotFoundError(
            f"{path}: no tokenizer.json in this folder; run `python -m train tokenizer` to make one"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path), trust_remote_code=False)
    except Exception as error:  # whatever is wrong with files that somebody else wrote
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise FileNotFoundError(
            f"{name_or_path}: no tokenizer there, neither as a local folder nor on the hub ({reason}); "
            "give a folder made by `python -m train tokenizer`, or a hub name while online"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"{name_or_path}: not a fast tokenizer; convert it with transformers first")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{name_or_path}: the tokenizer has no end-of-text token, which separates documents")
    return tokenizer


@dataclass(frozen=True, slots=True)
class Fertility:
    """How finely a tokenizer cuts one language (Rust et al. 2021 call tokens per word its fertility)."""

    language: str
    tokens: int
    bytes: int
    characters: int
    words: int | None
    """Stretches between spaces; None where the script has no spaces."""

    @property
    def tokens_per_word(self) -> float | None:
        return self.tokens / self.words if self.words else None

    @property
    def tokens_per_character(self) -> float:
        return self.tokens / self.characters

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


def measure_fertility(
    tokenizer: PreTrainedTokenizerBase, texts_by_language: Mapping[str, Iterable[str]], batch: int = 1000
) -> list[Fertility]:
    """One `Fertility` per language, special tokens not counted.

    Raises:
        ValueError: a language without text.
    """
    rows = []
    for language, texts in texts_by_language.items():
        tokens = num_bytes = characters = words = 0
        iterator = iter(texts)
        while chunk := list(itertools.islice(iterator, batch)):
            tokens += sum(map(len, tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]))
            num_bytes += sum(len(text.encode()) for text in chunk)
            characters += sum(map(len, chunk))
            words += sum(len(text.split()) for text in chunk)
        if not tokens:
            raise ValueError(f"no text for language {language!r} to measure fertility on")
        rows.append(Fertility(language, tokens, num_bytes, characters, None if is_unspaced(language) else words))
    return rows


def format_fertility(rows: Sequence[Fertility]) -> str:
    """A plain table, one line a language."""
    lines = [f"{'language':<10}{'tokens':>10}{'tokens/word':>13}{'tokens/char':>13}{'bytes/token':>13}"]
    for row in rows:
        per_word = "-" if row.tokens_per_word is None else f"{row.tokens_per_word:.2f}"
        lines.append(
            f"{row.language:<10}{row.tokens:>10}{per_word:>13}{row.tokens_per_character:>13.3f}"
            f"{row.bytes_per_token:>13.2f}"
        )
    return "\n".join(lines)
