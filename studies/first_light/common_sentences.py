"""How far R is lowered by sentences that concepts have in common, on one snapshot.

    python -m studies.first_light.common_sentences runs/first_light/d128-seed1 --step 20480

The concept file of the study has no half of its own for a sentence: one that is a negative of two concepts may be in
half 0 of one and half 1 of the other. What R takes off, the agreement of *different* concepts, then has sentences in
common, and is too high where translations respond alike. It is regressed on how much a pair of concepts has in common
(the cosine of its labels, as weights of sentences): the intercept is what would be taken off without. Concepts that
share sentences may be alike in other ways too, so the difference is the most that it can be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from analysis.checkpoints import RunFolder
from analysis.concepts.concept_set import ConceptSet
from analysis.concepts.dataset import load_concepts
from analysis.experts.table import find_experts
from analysis.extraction.options import Extraction
from analysis.measures.overlap import strata_of
from studies.first_light.study import STRATA


def label_cosines(concept_set: ConceptSet) -> np.ndarray:
    """(L, C, L, C) cosine of the labels of a concept in half 0 with those of another in half 1.

    Labels of a concept are weights of sentences that sum to 0: 1 / P of each positive, -1 / N of each negative.
    """
    keys = {key: place for place, key in enumerate(sorted({k for p in concept_set.pools.values() for k in p.keys}))}
    weights = np.zeros((2, len(concept_set.languages), len(concept_set.concepts), len(keys)), dtype=np.float32)
    for which in (0, 1):
        for row, pool in enumerate(concept_set.half(which).pools.values()):
            place = np.array([keys[key] for key in pool.keys])
            for column, concept in enumerate(concept_set.concepts):
                for side, sign in ((pool.positives[concept], 1.0), (pool.negatives[concept], -1.0)):
                    weights[which, row, column, place[side.numpy()]] = sign / len(side)
    flat = weights.reshape(2, -1, len(keys))
    flat /= np.linalg.norm(flat, axis=2, keepdims=True)
    size = weights.shape[1:3]
    cosines: np.ndarray = (flat[0] @ flat[1].T).reshape(*size, *size)
    return cosines


def without_common(agreement: np.ndarray, cosines: np.ndarray) -> tuple[float, float, float]:
    """R of one pair of languages as it is; without common sentences; and the slope.

    Args:
        agreement, cosines: (C, C) of concepts of different groups, NaN for others but the diagonal.
    """
    same, other = np.diag(agreement), ~np.eye(len(agreement), dtype=bool) & np.isfinite(agreement)
    slope, intercept = np.polyfit(cosines[other], agreement[other], 1)
    return float(same.mean() - agreement[other].mean()), float(same.mean() - intercept), float(slope)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="how far common sentences lower R, on one snapshot")
    parser.add_argument("run", type=Path)
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--concepts", type=Path, default=Path("runs/first_light/concepts.parquet"))
    options = parser.parse_args(arguments)
    source = RunFolder(path=options.run)
    wanted = [one for one in source.ids() if one.step == options.step]
    if not wanted:
        parser.error(f"{options.run} has no snapshot of step {options.step}")
    with source.open(wanted[0]) as snapshot:
        clones = snapshot.clones
        natural = sorted(load_concepts(options.concepts, min_positives=2).languages)
        concept_set = load_concepts(
            options.concepts, languages=sorted([*natural, *clones]), min_positives=2, clones=clones
        )
        extraction = Extraction(max_bytes=2**32)  # one forward pass
        table = find_experts(snapshot, concept_set, share=0.03, halves=True, extraction=extraction)
    assert table.halves is not None
    cosines, correlation = label_cosines(concept_set), table.halves.correlation
    related = concept_set.clusters[:, None] == concept_set.clusters[None]
    np.fill_diagonal(related, False)
    strata = strata_of(concept_set, clones)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for one, other in combinations(range(len(concept_set.languages)), 2):
        stratum = strata[concept_set.languages[one], concept_set.languages[other]]
        for row, column in ((one, other), (other, one)):
            agreement = np.where(related, np.nan, correlation[row, :, column, :])
            found.setdefault(stratum, []).append(without_common(agreement, cosines[row, :, column, :]))
    off = ~np.eye(len(related), dtype=bool) & ~related
    sys.stdout.write(
        f"{options.run.name}, step {options.step}: cosine of other concepts {cosines[0, :, 1][off].mean():.4f}\n"
    )
    for stratum in (name for name in (*STRATA, "with_clone") if name in found):
        as_is, without, slope = np.mean(found[stratum], axis=0)
        sys.stdout.write(f"{stratum:18} R {as_is:.4f}, without common sentences {without:.4f} (slope {slope:.3f})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
