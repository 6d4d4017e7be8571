"""The bag of tokens finds shared words."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from analysis.concepts.concept_set import ConceptPool, ConceptSet
from analysis.experts.surface import token_experts


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


def test_ties_are_not_broken_alike_in_all_languages(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """All tokens are in all texts: experts that are chosen at random share K / tokens, not everything."""
    texts = tuple(["abcdefghijklmnopqrstuvwxyz"] * 8)
    pools = {
        name: ConceptPool(name, texts, tuple(map(str, range(8))), {"x": torch.arange(4)}, {"x": torch.arange(4, 8)})
        for name in ("aa", "bb", "cc", "dd")
    }
    units, num_tokens = token_experts(byte_tokenizer, ConceptSet(tuple(pools), ("x",), pools), share=0.5)
    assert units.shape[-1] == num_tokens // 2 == 13
    shared = [len(set(units[one, 0]) & set(units[other, 0])) for one in range(4) for other in range(one)]
    assert max(shared) < 12
