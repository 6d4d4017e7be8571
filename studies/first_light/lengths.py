"""Could it be length? Sentences of a concept may be longer than their negatives in every language, since negatives are
matched by classes of length on the English side. Units that follow length then look shared for that concept, and
neither disjoint halves nor other concepts take it off. How far R goes with it, and what R is where there is none of it.

Shapes:  R seeds   C concepts   L languages
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from analysis.concepts.dataset import load_concepts
from analysis.experts.ranks import auroc
from analysis.statistics import two_way_interval
from studies.first_light.markdown import Table, interval, signs
from studies.first_light.study import STRATA, Study


def length_imbalance(concepts: Path, tokenizer: Path) -> pd.DataFrame:
    """Of every concept, language and half: the chance that a positive has more tokens than a negative, minus one half.

    Raises:
        FileNotFoundError, ValueError: see `load_concepts` and `ConceptSet.half`.
    """
    encode = Tokenizer.from_file(str(tokenizer))
    labelled = load_concepts(concepts, min_positives=2)  # as many as two halves need; the plan's file has 80
    halves = [labelled.half(which) for which in (0, 1)]
    rows = []
    for language, pool in labelled.pools.items():
        encoded = encode.encode_batch(list(pool.texts), add_special_tokens=False)
        tokens = np.array([len(one.ids) for one in encoded], dtype=np.float32)
        for half, concept in product((0, 1), labelled.concepts):
            part = halves[half].pools[language]
            yes, no = (np.sort(tokens[side[concept].numpy()])[None] for side in (part.positives, part.negatives))
            rows.append((concept, language, half, round(float(auroc(yes, no)[0]) - 0.5, 6)))
    return pd.DataFrame(rows, columns=["concept", "language", "half", "imbalance"])


def length_table(study: Study) -> Table:
    rows = []
    for condition in (None, *study.strata):
        common = _in_common(study, condition)
        first, last = (
            study.by_concept("rank_transfer", condition, step)[common.index] for step in (0, study.steps[-1])
        )
        follows = [f"{np.corrcoef(common, own.mean())[0, 1]:+.2f}" for own in (first, last)]
        left = [without(own.to_numpy(), common.to_numpy()) for own in (first, last)]
        contrast = two_way_interval(left[1] - left[0], study.clusters_of(common.index))
        means = [f"{own.mean():.4f}" for own in left]
        label = STRATA.get(condition or "", "all natural pairs")
        rows.append([label, *follows, *means, interval(contrast), signs((left[1] - left[0]).mean(1))])
    return Table(
        "Could it be length?",
        "Not planned. How much longer the sentences of a concept are than their negatives in both languages at once "
        "(in tokens, the product over the two halves): its correlation with R over concepts, and R of a concept "
        "without any such imbalance (the intercept), over seeds and concepts.",
        [
            "pairs",
            "correlation at step 0",
            f"at step {study.steps[-1]:,}",
            "R without it at step 0",
            f"at step {study.steps[-1]:,}",
            "rise",
            "seeds",
        ],
        rows,
    )


def without(values: np.ndarray, imbalance: np.ndarray) -> np.ndarray:
    """(R, C) with the intercepts of each seed's regression on `imbalance` (C,) as means over concepts.

    What a concept adds is its share of the intercept, so the spread over concepts is that of the intercept.
    """
    centred = imbalance - imbalance.mean()
    weights = 1.0 / len(imbalance) - imbalance.mean() * centred / (centred @ centred)
    mean = values.mean(0)
    slope = mean @ centred / (centred @ centred)
    intercept = mean.mean() - slope * imbalance.mean()
    found: np.ndarray = intercept + len(imbalance) * weights * (values - intercept - slope * imbalance)
    return found


def _in_common(study: Study, condition: str | None) -> pd.Series:
    """Of every concept: the imbalance in one language times that in the other, mean over the pairs of a stratum."""
    table = study.lengths.pivot(index="concept", columns=["half", "language"], values="imbalance")
    pairs = [("en", "en")]  # the clone has the original's sentences
    if condition != "clone":
        known = study.languages
        own = known if condition is None else known[known["stratum"] == condition]
        pairs = list(own[["language", "other_language"]].itertuples(index=False, name=None))
    products = [table[0, one] * table[1, other] + table[1, one] * table[0, other] for one, other in pairs]
    return pd.concat(products, axis=1).mean(axis=1) / 2.0
