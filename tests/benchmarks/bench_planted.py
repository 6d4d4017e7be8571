"""Does the verdict see planted sharing, and nothing else? A hundred networks of each kind, made of random numbers.

    python tests/benchmarks/bench_planted.py [--draws 100]

A network is responses of units to parallel sentences in four languages; a concept labels 30 of them, each with 3
negatives of its length. Kinds: `noise`; `similarity` (translations respond alike, along few directions); `length`
(units follow the length of the sentence, alike in all languages); `language` (each language has units of its own for
every concept); `sharing` (10 of the 30 best units of a concept are the same in all languages, the rest is noise). The
verdict holds `rank_transfer` of the network against five random networks (half of `similarity`) on the same sentences.
The first four are to stay at their null in 94 of 100 draws, `sharing` is to be found in 95; `sharing, similarity` says
what is left of that where translations respond alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from analysis.concepts.concept_set import ConceptPool, ConceptSet  # noqa: E402
from analysis.experts.heldout import rank_transfer  # noqa: E402
from analysis.experts.search import Found, top_units  # noqa: E402
from analysis.statistics import Contrast, against_band  # noqa: E402

LANGUAGES = ("aa", "bb", "cc", "dd")
PAIRS = np.array(list(combinations(range(len(LANGUAGES)), 2)))
KINDS = ("noise", "similarity", "length", "language", "sharing", "sharing, similarity")
SITES, UNITS, SENTENCES, CONCEPTS = 3, 200, 500, 24
POSITIVES, NEGATIVES, K = 30, 3, 30
DIRECTIONS = 20
"""Of what translations have in common."""
LENGTHS = 5
"""Classes of length, within which negatives are matched."""


def make_concepts(rng: np.random.Generator, concepts: int = CONCEPTS) -> tuple[ConceptSet, np.ndarray]:
    """Labelled parallel sentences, and their lengths (T,). Concepts prefer short or long sentences."""
    length = rng.integers(LENGTHS, size=SENTENCES)
    keys = tuple(f"s{index}" for index in range(SENTENCES))
    names = tuple(f"c{number}" for number in range(concepts))
    yes, no, matches = {}, {}, {}
    for name in names:
        weight = np.exp(rng.normal(scale=0.3) * length)
        chosen = rng.choice(SENTENCES, POSITIVES, replace=False, p=weight / weight.sum())
        free = np.setdiff1d(np.arange(SENTENCES), chosen)
        match: dict[str, str] = {}
        for positive in chosen:
            found = rng.permutation(free[length[free] == length[positive]])[:NEGATIVES]
            match |= {keys[index]: keys[positive] for index in found}
            free = np.setdiff1d(free, found)
        yes[name] = torch.from_numpy(np.sort(chosen))
        no[name] = torch.tensor(sorted(keys.index(key) for key in match))
        matches[name] = match
    pools = {language: ConceptPool(language, keys, keys, yes, no, matches) for language in LANGUAGES}
    return ConceptSet(LANGUAGES, names, pools), length


def make_network(kind: str, concept_set: ConceptSet, length: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Responses (U, T) of every language."""
    num_units = SITES * UNITS
    alike = {"similarity": 1.0, "random": 0.5, "sharing, similarity": 0.5}.get(kind, 0.0)
    directions = rng.normal(size=(num_units, DIRECTIONS)) / np.sqrt(DIRECTIONS)
    common = alike * directions @ rng.normal(size=(DIRECTIONS, SENTENCES))
    if kind == "length":
        common += rng.normal(size=(num_units, 1)) * length
    values = [common + rng.normal(size=common.shape) for _ in LANGUAGES]
    if kind == "language" or kind.startswith("sharing"):
        pool = concept_set.pools[LANGUAGES[0]]
        for concept in concept_set.concepts:
            shared = rng.choice(num_units, 10, replace=False)
            for part in values:
                units = shared if kind.startswith("sharing") else rng.choice(num_units, 10, replace=False)
                part[np.ix_(units, pool.positives[concept].numpy())] += 1.5
    return values


def search(values: list[np.ndarray], concept_set: ConceptSet) -> Found:
    """As on a model: site by site."""
    tensors = [torch.from_numpy(part.astype(np.float32)) for part in values]
    parts = ([part[site * UNITS : (site + 1) * UNITS] for part in tensors] for site in range(SITES))
    stream = ((site * UNITS, True, values) for site, values in enumerate(parts))
    return top_units(stream, concept_set, K, halves=True)


def transfer(found: Found, concept_set: ConceptSet) -> np.ndarray:
    """R of every concept (C,), mean over pairs."""
    assert found.halves is not None
    by_pair = rank_transfer(found.halves.correlation, PAIRS, concept_set.clusters)
    assert by_pair is not None
    return by_pair.mean(1)


def verdicts(seed: int) -> dict[str, Contrast]:
    """One draw of sentences, five random networks, and one network of each kind against them."""
    rng = np.random.default_rng(seed)
    concept_set, length = make_concepts(rng)
    band = []
    for _ in range(5):
        values = make_network("random", concept_set, length, rng)
        band.append(transfer(search(values, concept_set), concept_set))
    found = {}
    for kind in KINDS:
        values = make_network(kind, concept_set, length, rng)
        found[kind] = against_band(transfer(search(values, concept_set), concept_set), np.array(band))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="the verdict on planted networks")
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    drawn = [verdicts(seed) for seed in range(options.draws)]
    print(f"{'planted':20} {'mean of R - band':>17} {'above':>6} {'below':>6} {'at the null':>12}   of {options.draws}")
    for kind in KINDS:
        contrasts = [draw[kind] for draw in drawn]
        above, below = sum(one.low > 0 for one in contrasts), sum(one.high < 0 for one in contrasts)
        mean = np.mean([one.difference for one in contrasts])
        print(f"{kind:20} {mean:17.4f} {above:6} {below:6} {options.draws - above - below:12}")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
