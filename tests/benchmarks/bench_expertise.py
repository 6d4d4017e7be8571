"""AP of all units: scikit-learn unit by unit, and ml-selfcond's process pool, against one sort for all concepts.

    python tests/benchmarks/bench_expertise.py [--quick]

A pair is one unit and one concept. All variants take turns in one process, one thread, CPU time (children included),
and medians are compared; a quarter of the units are rectified, so they have hundreds of ties. The last row runs the
search for experts in a random BLOOM of 7B1's width in a process of its own and reports its peak memory without weights
(`--layers 30` runs as many layers as 7B1 has).

`make bench` collects `run`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from sklearn.metrics import average_precision_score  # noqa: E402

from analysis.experts.average_precision import Labels, average_precision  # noqa: E402
from tests.benchmarks.peak import peak_above  # noqa: E402
from tests.benchmarks.rows import row  # noqa: E402

NUM_TEXTS, NUM_CONCEPTS, NUM_POSITIVES = 1500, 200, 100


def cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def make_values(num_units: int) -> torch.Tensor:
    values = np.random.default_rng(0).normal(size=(num_units, NUM_TEXTS)).astype(np.float32)
    values[::4] = np.maximum(values[::4], 0.0)
    return torch.from_numpy(values)


def make_positives(num_concepts: int, seed: int = 1) -> list[torch.Tensor]:
    generator = np.random.default_rng(seed)
    return [torch.from_numpy(generator.permutation(NUM_TEXTS)[:NUM_POSITIVES]) for _ in range(num_concepts)]


def make_matched(positives: list[torch.Tensor]) -> list[torch.Tensor]:
    """Five negatives for each positive."""
    generator = np.random.default_rng(2)
    rest = [generator.permutation(np.setdiff1d(np.arange(NUM_TEXTS), yes)) for yes in positives]
    return [torch.from_numpy(others[: 5 * NUM_POSITIVES]) for others in rest]


def make_halves(positives: list[torch.Tensor]) -> Labels:
    """All concepts on all texts, then on each of two disjoint halves of them."""
    halves = torch.from_numpy(np.random.default_rng(4).permutation(NUM_TEXTS)).chunk(2)
    yes, no = [], []
    for part in (torch.arange(NUM_TEXTS), *halves):
        for concept in positives:
            member = torch.isin(part, concept)
            yes.append(part[member])
            no.append(part[~member])
    return Labels(NUM_TEXTS, yes, no)


def scikit_learn(values: torch.Tensor, positives: list[torch.Tensor]) -> np.ndarray:
    """(C, U), one call per unit and concept."""
    found = []
    for yes in positives:
        label = np.zeros(NUM_TEXTS, dtype=int)
        label[yes] = 1
        found.append([average_precision_score(label, row) for row in values.numpy()])
    return np.array(found)


def _one_unit(arguments: tuple[list[int], list[float]]) -> float:
    return float(average_precision_score(*arguments))


def selfcond(values: torch.Tensor, positives: list[torch.Tensor]) -> np.ndarray:
    """The published way: responses as Python lists, a new pool of processes for every concept, one call per unit."""
    found = []
    for yes in positives:
        label = [0] * NUM_TEXTS
        for index in yes.tolist():
            label[index] = 1
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found.append(pool.map(_one_unit, [(label, row) for row in values.tolist()]))
    return np.array(found)


def run(quick: bool, layers: int = 0) -> list[dict[str, Any]]:
    """Rows `name, baseline, ours, ratio, unit, note`; a ratio above 1 is in our favour."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = _speed(rounds=2 if quick else 5)
    finally:
        torch.set_num_threads(before)
    layers = layers or (1 if quick else 4)
    measured = json.loads(
        subprocess.run(
            [sys.executable, __file__, "--experts", str(layers)], check=True, capture_output=True, text=True, cwd=ROOT
        ).stdout.splitlines()[-1]
    )
    note = (
        f"{measured['units']:,} units x 64 concepts x 11 languages, {measured['texts']} texts, peak of the process "
        f"without the weights, {measured['seconds']:.0f} s; baseline: the bound that was set"
    )
    rows.append(row("experts, BLOOM-7B1 shape", 12.0, measured["peak_gb"], "GB", note))
    return rows


def two_threads(compute: Callable[[], Any], pairs: int, rounds: int) -> float:
    """Wall time a pair in us on two threads, the best of several rounds: others that use the machine only add to it."""
    torch.set_num_threads(2)
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        compute()
        times.append(1e6 * (time.perf_counter() - started) / pairs)
    torch.set_num_threads(1)
    return min(times[1:])


def _speed(rounds: int) -> list[dict[str, Any]]:
    many, few = make_values(1024), 24
    positives = make_positives(NUM_CONCEPTS)
    others = Labels(NUM_TEXTS, positives)
    matched = Labels(NUM_TEXTS, positives, make_matched(positives))
    with_null = Labels(NUM_TEXTS, positives + make_positives(NUM_CONCEPTS, seed=3))
    halves = make_halves(positives)
    two = positives[:2]
    variants: dict[str, tuple[Callable[[], Any], int]] = {
        "scikit-learn": (lambda: scikit_learn(many[:few], two), few * 2),
        "selfcond": (lambda: selfcond(many[:256], two[:1]), 256),
        "numba": (lambda: average_precision(many, others), 1024 * NUM_CONCEPTS),
        "numba, matched": (lambda: average_precision(many, matched), 1024 * NUM_CONCEPTS),
        "numba, with null": (lambda: average_precision(many, with_null), 1024 * NUM_CONCEPTS),
        "numba, with halves": (lambda: average_precision(many, halves), 1024 * NUM_CONCEPTS),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    results: dict[str, Any] = {}
    for round_ in range(rounds + 1):
        for name, (compute, pairs) in variants.items():
            started = cpu_seconds()
            results[name] = compute()
            if round_:  # the first round compiles and warms up
                times[name].append(1e6 * (cpu_seconds() - started) / pairs)
    cost = {name: statistics.median(measured) for name, measured in times.items()}
    exact = results["scikit-learn"]
    error = np.abs(results["numba"][:2, :few].numpy() - exact).max()
    shape = f"{NUM_CONCEPTS} concepts, {NUM_TEXTS} texts, 1 thread, CPU time; largest difference {error:.0e}"
    base = cost["scikit-learn"]
    rows = [
        row("AP, numba vs scikit-learn loop", base, cost["numba"], "us/pair", shape),
        row(
            "AP, numba on two threads vs scikit-learn loop on one",
            base,
            two_threads(lambda: average_precision(many, others), 1024 * NUM_CONCEPTS, 4 * rounds),
            "us/pair",
            "wall time; the baseline's CPU time",
        ),
        row(
            "AP, numba vs ml-selfcond",
            cost["selfcond"],
            cost["numba"],
            "us/pair",
            "one process per pool, responses as lists",
        ),
        row(
            "AP, matched negatives",
            base,
            cost["numba, matched"],
            "us/pair",
            "5 listed negatives per positive; the baseline ranks all texts",
        ),
    ]
    memory = {
        "scikit-learn loop": peak_above(lambda: scikit_learn(many[:256], two)),
        "ml-selfcond": peak_above(lambda: selfcond(many, two[:1])),
    }
    ours = peak_above(lambda: average_precision(many, others))
    for name, theirs in memory.items():
        note = f"1,024 units, all {NUM_CONCEPTS} concepts at once; the baseline's does not depend on the concepts"
        rows.append(row(f"AP, memory vs {name}", theirs, ours, "GB", f"{note}; above the responses"))
    plain = cost["numba"]
    note = "added by {} to 200 concepts, beside the cost of these; below 0.83 would be more than 1.2 times as much"
    for name, what in (("null", "200 label permutations"), ("halves", "both halves of the texts")):
        added = cost[f"numba, with {name}"] - plain
        rows.append(row(f"AP, added by the {name}", plain, added, "us/pair", note.format(what)))
    return rows


def measure_experts(num_layers: int) -> dict[str, Any]:
    """Peak memory of `find_experts` on a random BLOOM of 7B1's width, weights taken off.

    The layers have the weights of one, so that as many fit as 7B1 has; responses, forward passes and search are real.
    100 texts of four words in each of 11 languages; 64 concepts.
    """
    import copy

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

    from analysis.concepts.concept_set import ConceptPool, ConceptSet
    from analysis.experts.table import find_experts
    from analysis.extraction.sites import UnitSpace, find_sites
    from analysis.snapshots import Snapshot, SnapshotId

    texts, concepts, languages = 100, 64, tuple(f"l{index:02d}" for index in range(11))
    vocabulary = {name: place for place, name in enumerate(["<unk>", "<s>", "</s>", "<pad>", *map(str, range(60))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = BloomConfig(vocab_size=len(vocabulary), hidden_size=4096, n_layer=1, n_head=32)
    model = BloomForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    first = model.transformer.h[0]
    own = {id(weight): weight for weight in first.parameters()}
    model.transformer.h.extend(copy.deepcopy(first, own.copy()) for _ in range(num_layers - 1))
    config.n_layer = num_layers
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    names = tuple(f"c{index:02d}" for index in range(concepts))
    pools = {}
    for place, language in enumerate(languages):
        generator = np.random.default_rng(place)
        orders = {name: torch.from_numpy(generator.permutation(texts)) for name in names}
        yes = {name: order[:15] for name, order in orders.items()}
        no = {name: order[15:90] for name, order in orders.items()}
        keys = tuple(map(str, range(texts)))
        sentences = tuple(" ".join(map(str, row)) for row in generator.integers(0, 60, (texts, 4)))
        pools[language] = ConceptPool(language, sentences, keys, yes, no)
    started = time.perf_counter()
    snapshot = Snapshot(SnapshotId("bloom-7b1", 0), model, tokenizer)
    table = find_experts(snapshot, ConceptSet(languages, names, pools), k=500)
    assert table.experts.units.shape == (11, 64, 500)
    return {
        "units": UnitSpace(find_sites(model)).num_units,
        "texts": texts * len(languages),
        "seconds": time.perf_counter() - started,
        "weights_gb": weights / 2**30,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 - weights / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="AP of all units: scikit-learn and ml-selfcond against one sort")
    parser.add_argument("--quick", action="store_true", help="two rounds, one layer of BLOOM-7B1")
    parser.add_argument("--layers", type=int, default=0, help="of BLOOM-7B1 (default: 4, quick: 1)")
    parser.add_argument("--experts", type=int, metavar="LAYERS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.experts is not None:
        torch.set_num_threads(min(2, os.cpu_count() or 1))
        print(json.dumps(measure_experts(options.experts)))
        return
    for one in run(options.quick, options.layers):
        print(
            f"{one['name']:32} {one['baseline']:10.3f} {one['ours']:10.3f} {one['unit']:8} "
            f"{one['ratio']:8.2f}x  {one['note']}"
        )


if __name__ == "__main__":
    main()
