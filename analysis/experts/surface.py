"""What languages share on the surface: the overlap of a "network" that sees only which tokens are there.

Shared subwords, names and digits make units of an *untrained* network respond alike to translations, far above
chance. The control is the experts of a bag of tokens, where a unit is a token and responds 1 to a text that has it.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from analysis.concepts.concept_set import ConceptSet
from analysis.experts.average_precision import Labels, average_precision
from analysis.experts.topk import TopUnits
from analysis.extraction.encoding import encode_texts

BLOCK = 4096
"""Tokens scored at a time."""


def token_experts(
    tokenizer: PreTrainedTokenizerBase, concept_set: ConceptSet, share: float, max_length: int = 512
) -> tuple[np.ndarray, int]:
    """Expert tokens by AP of their presence: ids (L, C, K') and the number of tokens that occur in any language.

    K' is `share` of those tokens (at least 1), so that chance is that of the network's experts. Presences tie
    massively; ties are broken at random in each language, so that no token is chosen in all languages for its id.
    """
    present = []
    for language in concept_set.languages:
        encoded = encode_texts(tokenizer, concept_set.pools[language].texts, max_length)
        present.append(
            [
                sorted({token for token, counts in zip(ids, content, strict=True) if counts})
                for ids, content in zip(encoded.ids, encoded.content, strict=True)
            ]
        )
    tokens = np.unique(np.concatenate([np.concatenate(texts) for texts in present]))
    k = min(len(tokens), max(1, round(share * len(tokens))))
    num_concepts = len(concept_set.concepts)
    tops = [TopUnits(num_concepts, k) for _ in concept_set.languages]
    orders = [np.random.default_rng(place).permutation(len(tokens)) for place in range(len(tops))]
    for language, texts, top, order in zip(concept_set.languages, present, tops, orders, strict=True):
        labels = Labels(len(texts), *concept_set.pools[language].labels(concept_set.concepts))
        columns = np.repeat(np.arange(len(texts)), [len(ids) for ids in texts])
        rows = np.argsort(order)[np.searchsorted(tokens, np.concatenate(texts))]
        for first in range(0, len(tokens), BLOCK):
            inside = (rows >= first) & (rows < first + BLOCK)
            values = torch.zeros(min(BLOCK, len(tokens) - first), len(texts))
            values[rows[inside] - first, columns[inside]] = 1.0
            top.update(average_precision(values, labels).numpy(), first)
    return np.stack([order[top.units] for order, top in zip(orders, tops, strict=True)]), len(tokens)
