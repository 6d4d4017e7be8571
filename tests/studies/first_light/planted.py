"""Studies with a planted truth: results of all runs as the analyses of the plan store them, and the tables of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers

from analysis.base import Analysis, Attachment, Row
from analysis.measures import load_analyses
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId
from studies.first_light.collect import collect

ROOT = Path(__file__).parents[3]
LANGUAGES = ("de", "en", "es", "fr", "hu", "it", "ja", "ko", "pl", "pt", "ru", "zh")
WORDS = {"ja": "漢かナ", "zh": "漢字語", "ko": "한글말", "ru": "дая"}
STEPS = (0, *(2**power for power in range(6, 15)), 20_480)
CONCEPTS = tuple(f"c{place}" for place in range(58))
STRATA = ("same_family", "same_script", "disjoint_scripts", "clone")
SEEDS = range(1, 6)
KEYS = 300
WIDTH = 0.4
"""Octaves in which R rises."""


@dataclass(frozen=True)
class Truth:
    """What is planted."""

    rise: dict[str, float] = field(
        default_factory=lambda: {"same_family": 0.1, "same_script": 0.06, "disjoint_scripts": 0.03, "clone": 0.05}
    )
    """Of R by stratum, around the octave of `onset`."""
    onset: dict[str, float] = field(
        default_factory=lambda: {"same_family": 9.0, "same_script": 10.0, "disjoint_scripts": 11.0, "clone": 10.0}
    )
    level: float = 0.01
    """R of untrained networks."""
    middle: float = -0.08
    """What the probe's accuracy in the middle changes by after step 256."""
    ends: float = 0.0
    """The same of both ends."""
    transfer: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STRATA, 0.05))
    """Causal transfer at the last step."""
    slope: float = -0.02
    """What a doubling of the width adds to rise / ceiling."""
    by_loss: float = 0.0
    """What a bit of held-out loss adds to it; wider models learn faster."""


def write_study(folder: Path, truth: Truth | None = None, *, steps: tuple[int, ...] = STEPS) -> Path:
    """All runs in `folder` / runs, and their tables in `folder` / results, which is returned."""
    truth, runs = truth or Truth(), folder / "runs"
    runs.mkdir(parents=True)
    plant_concepts(runs / "concepts.parquet")
    with chdir(ROOT):
        lists = (ROOT / "studies" / "first_light" / "analyses").glob("*.yaml")
        analyses = {
            (path.stem, one.name): one for path in lists for one in load_analyses(path.relative_to(ROOT).as_posix())
        }
    rng = np.random.default_rng(0)
    spread = {stratum: 0.03 * rng.normal(size=len(CONCEPTS)) for stratum in (None, *STRATA)}
    for seed in SEEDS:
        later = 0.3 * rng.normal()
        for step in steps:
            found: dict[tuple[str, str], Iterable[Row | Attachment]] = {}
            found["core", "held_out"] = [Row(metric="bits_per_byte", value=4.0 - 0.1 * share_of(step), chance=3.9)]
            found["core", "overlap"] = [*overlap_rows(truth, step, later, spread, rng), experts()]
            found["seeds", "language_probe"] = probe_rows(truth, step, rng)
            found["seeds", "alignment"] = [
                Row(metric=metric, value=1.0 + 0.01 * rng.normal(), chance=0.1)
                for metric in ("cka_debiased", "mutual_knn")
            ]
            found["followed", "trajectories"] = followed(step, steps[-1])
            if step in (0, 2048, 20_480):
                found["dear", "causal_transfer"] = transfer_rows(truth, step, rng)
                found["dear", "concept_directions"] = [Row(metric="direction_transfer", value=0.6, chance=0.5)]
                found["dear", "probe_suite"] = [Row(metric="accuracy_mlp", value=0.9, chance=0.1)]
            store(runs, f"d128-seed{seed}", step, found, analyses)
    for width, seed, step in product((32, 64, 128, 256), SEEDS, (0, 2048, 10_240)):
        octaves = np.log2(width / 32)
        loss = 4.0 - step / 10_240 - 0.1 * octaves * (step > 0)
        value = (0.2 + truth.slope * octaves + truth.by_loss * (4.0 - loss)) * (step > 0) + 0.005 * rng.normal()
        rows = [
            Row(metric="rank_transfer", value=value, condition="disjoint_scripts"),
            Row(metric="rank_ceiling", value=1.0),
        ]
        found = {("capacity", "held_out"): [Row(metric="bits_per_byte", value=loss)], ("capacity", "overlap"): rows}
        store(runs, f"capacity-d{width}-seed{seed}", step, found, analyses)
    for width, seed, step in product((32, 128), (1, 2, 3), (0, 10_240)):
        value = 0.4 * (step > 0) + 0.01 * seed
        rows = [Row(metric=name, value=value, condition="clone") for name in ("rank_transfer", "shared")]
        store(runs, f"clone-d{width}-seed{seed}", step, {("clone", "overlap"): rows}, analyses)
    with chdir(ROOT):
        collect(runs, folder / "results")
    return folder / "results"


def store(
    runs: Path,
    run: str,
    step: int,
    found: Mapping[tuple[str, str], Iterable[Row | Attachment]],
    analyses: dict[tuple[str, str], Analysis],
) -> None:
    """Results by list and analysis, with the settings of the plan."""
    with chdir(ROOT):
        for key, measured in found.items():
            ResultTable(runs / run / "results").write(SnapshotId(run, step, 1536 * step), analyses[key], measured, 1.0)
    snapshot = runs / run / "snapshots" / f"step_{step:08d}"
    snapshot.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({letter: place for place, letter in enumerate(letters())}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(snapshot / "tokenizer.json"))


def letters() -> list[str]:
    return sorted(set("".join(WORDS.values())) | set("abcdefghij"))


def plant_concepts(path: Path) -> None:
    """A concept file of which scripts, frequencies of tokens and lengths are read."""
    rng = np.random.default_rng(9)
    rows = []
    for language in LANGUAGES:
        own = list(WORDS.get(language, "abcdefghij"))
        share = rng.dirichlet(np.ones(len(own)))
        for concept, number in product(CONCEPTS, range(8)):
            text = "".join(rng.choice(own, size=rng.integers(8, 30), p=share))
            rows.append((concept, language, f"{concept}-{number}", text, number % 2))
    pd.DataFrame(rows, columns=["concept", "language", "uid", "text", "label"]).to_parquet(path)


def overlap_rows(
    truth: Truth, step: int, later: float, spread: dict[str | None, np.ndarray], rng: np.random.Generator
) -> Iterator[Row]:
    risen = {
        stratum: rise * (step > 0) / (1 + np.exp((truth.onset[stratum] + later - np.log2(step or 1)) / WIDTH))
        for stratum, rise in truth.rise.items()
    }
    for stratum, by in {**risen, None: float(np.mean([*risen.values()][:3]))}.items():
        own = spread[stratum] * (step > 0) + 0.02 * rng.normal(size=len(CONCEPTS))
        values = truth.level + by + own - own.mean() + 0.001 * rng.normal()
        yield Row(metric="rank_transfer", value=values.mean(), condition=stratum, chance=0.0)
        for concept, value in zip(CONCEPTS, values, strict=True):
            yield Row(metric="rank_transfer", value=value, condition=stratum, concept=concept, chance=0.0)
        for metric in ("shared", "shared_shuffled", "shared_mismatched"):
            value = 0.03 + by * (metric == "shared") + 0.001 * rng.normal()
            yield Row(metric=metric, value=value, condition=stratum, chance=0.03)
        for k in (28, 92, 276, 922):
            yield Row(metric="heldout_shared", value=by + 0.001 * rng.normal(), condition=stratum, k=k, chance=0.0)
    for metric in ("transfer_gain", "normalized", "rank_ceiling"):
        yield Row(metric=metric, value=0.3 + 0.001 * rng.normal(), chance=0.0)
    for one, other in combinations(LANGUAGES, 2):
        same = bool(set(WORDS.get(one, "a")) & set(WORDS.get(other, "a")))
        value = 0.08 * share_of(step) * same + 0.004 * rng.normal()
        yield Row(metric="rank_transfer", value=value, language=one, other_language=other)
    yield Row(metric="rank_transfer", value=0.02 * share_of(step), condition="with_clone")
    for layer in range(8):
        yield Row(metric="shared_units", value=0.005 + 0.001 * layer, layer=layer, chance=0.004)


def experts() -> Attachment:
    return Attachment("experts", pa.table({"concept": CONCEPTS, "cluster": list(range(len(CONCEPTS)))}))


def probe_rows(truth: Truth, step: int, rng: np.random.Generator) -> Iterator[Row | Attachment]:
    for layer in range(-1, 8):
        yield Row(metric="accuracy_shared", value=0.7 + 0.01 * rng.normal(), layer=layer, chance=0.2)
    late = (step > 256) * share_of(step)
    levels = {"embedding": 0.6, "middle": 0.85 + truth.middle * late, "last": 0.8 + truth.ends * late}
    right = {
        name: rng.binomial(20, level if step or name == "embedding" else 0.6, size=KEYS).astype(float)
        for name, level in levels.items()
    }
    keys = [f"k{key:03}" for key in range(KEYS)]
    yield Attachment("dip", pa.table({"key": keys, **right, "total": np.full(KEYS, 20.0)}))


def followed(step: int, last: int) -> Iterator[Row | Attachment]:
    """One expert in each of two languages, best in its own from step 256 on; English joins at the end, German not."""
    yield Row(metric="frozen_ap", value=0.5, language="de", other_language="en")
    own = 0.01 if step >= 256 else 0.5
    ranks = {"rank_de": [own, 0.5], "rank_en": [0.5 * (step < last), own]}
    yield Attachment("units", pa.table({"concept": ["c0"] * 2, "language": ["de", "en"], "unit": [3, 7], **ranks}))


def transfer_rows(truth: Truth, step: int, rng: np.random.Generator) -> Iterator[Row]:
    for stratum, by in truth.transfer.items():
        for concept in CONCEPTS:
            for metric, value in (("causal_transfer", by * (step == 20_480)), ("causal_transfer_random", 0.2)):
                noise = 0.02 * rng.normal()
                yield Row(metric=metric, value=value + noise, condition=stratum, concept=concept)
    for concept in CONCEPTS:
        yield Row(metric="causal_own", value=0.3 * (step > 0) + 0.02 * rng.normal(), concept=concept)


def share_of(step: int) -> float:
    return 0.0 if step == 0 else float(np.log2(step) / np.log2(20_480))
