"""The bag of tokens finds shared words, and scripts are told apart."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from analysis.concepts.dataset import ConceptPool, ConceptSet
from analysis.experts.surface import main_scripts, token_experts


def test_token_that_goes_with_a_concept_is_its_expert(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    pools = {}
    for language, filler in (("aa", "abc"), ("bb", "def")):
        texts = tuple(f"{filler}{'q' if index < 10 else ''}" for index in range(30))
        yes, no = {"fire": torch.arange(10)}, {"fire": torch.arange(10, 30)}
        pools[language] = ConceptPool(language, texts, tuple(map(str, range(30))), yes, no)
    units, num_tokens = token_experts(byte_tokenizer, ConceptSet(("aa", "bb"), ("fire",), pools), share=0.01)
    assert num_tokens == len("abcdefq")
    assert units.shape == (2, 1, 1)
    letters = sorted(byte_tokenizer.convert_tokens_to_ids(list("abcdefq")))
    assert [letters[unit] for unit in units.ravel()] == [byte_tokenizer.convert_tokens_to_ids("q")] * 2


def test_more_experts_than_tokens_are_cut(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ("a", "b")
    pool = ConceptPool("aa", texts, texts, {"x": torch.tensor([0])}, {"x": torch.tensor([1])})
    units, num_tokens = token_experts(byte_tokenizer, ConceptSet(("aa",), ("x",), {"aa": pool}), share=1.0)
    assert (units.shape[-1], num_tokens) == (2, 2)


def test_scripts_of_languages() -> None:
    assert main_scripts(["Übung macht den Meister 12!"]) == {"LATIN"}
    assert main_scripts(["Быстрая лиса iPhone"] * 3) == {"CYRILLIC", "LATIN"}
    assert main_scripts(["Быстрая коричневая лиса прыгает через ленивую собаку OK"]) == {"CYRILLIC"}
    assert main_scripts(["水は冷たいです"]) == {"CJK", "HIRAGANA"}
    assert main_scripts(["喔，上有烈日下有水流"]) == {"CJK"}
    assert main_scripts(["12 + 3"]) == frozenset()
