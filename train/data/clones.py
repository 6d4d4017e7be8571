"""Cloned languages: the text of another language in token ids of its own, real language with a known counterpart.

A clone has every id of its original plus a shift, special tokens aside: the two share no token but those, their
statistics are the same, and whatever a model has in common between them it has learned (Schäfer et al. 2024, arXiv
2404.07982). The training documents of the original are dealt out among it and its clones by a hash of the text, so no
sentence is seen in both; held-out text serves both, and so is parallel. The k-th clone, in order of names, is shifted
by k times the tokenizer's size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from babelscope.records import Clone
from train.data.decontamination import text_digest
from train.data.documents import Document

CLONE_NAME = re.compile(r"[a-z]{2,3}[A-Za-z0-9_-]*")


def make_clones(named: Mapping[str, str], languages: Sequence[str], vocab_size: int) -> dict[str, Clone]:
    """Clones by name, sorted.

    Args:
        named: original of each clone, such as {en2: en}.
        languages: of the text.
        vocab_size: tokens of the tokenizer.

    Raises:
        ValueError: an original that is not trained on, or a name that is taken or not one of a language.
    """
    for name, original in named.items():
        if not CLONE_NAME.fullmatch(name):
            raise ValueError(f"data.clones: {name!r} cannot name a language; use letters and digits, such as en2")
        if name in languages:
            raise ValueError(f"data.clones: {name} is a language of the text already; choose another name")
        if original not in languages:
            raise ValueError(
                f"data.clones: {name} is a clone of {original}, which is not among the languages {', '.join(languages)}"
            )
    return {name: Clone(named[name], vocab_size * place) for place, name in enumerate(sorted(named), start=1)}


def dealt_to(document: Document, clones: Mapping[str, Clone]) -> list[str]:
    """The languages in which a document is read: one of the original and its clones in training, else all of them."""
    family = [document.language, *(name for name, clone in clones.items() if clone.of == document.language)]
    if document.split != "train" or len(family) == 1:
        return family
    place = int.from_bytes(text_digest(f"clone {document.text}")[:8], "little")
    return [family[place % len(family)]]


def as_json(clones: Mapping[str, Clone]) -> dict[str, dict[str, str | int]]:
    """As manifests and snapshots hold them: {"en2": {"of": "en", "shift": 8192}}."""
    return {name: asdict(clone) for name, clone in sorted(clones.items())}
