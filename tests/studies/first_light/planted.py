"""Result tables of a study with a planted truth, in the shape in which `collect.py` writes them."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

LANGUAGES = ("de", "en", "es", "fr", "hu", "it", "ja", "ko", "pl", "pt", "ru", "zh")
OTHER_SCRIPT = {"ja": "han", "zh": "han", "ko": "hangul", "ru": "cyrillic"}
OTHER_FAMILY = {"hu": "uralic", "ja": "japonic", "ko": "koreanic", "zh": "sinitic"}
STEPS = (0, *(2**power for power in range(6, 15)), 20_480)
CONCEPTS = tuple(f"c{place}" for place in range(58))
ROW = dict.fromkeys(("layer", "condition", "k", "concept", "language", "other_language", "chance", "low", "high"))


def distances() -> pd.DataFrame:
    rng = np.random.default_rng(9)
    rows = []
    for one, other in combinations(LANGUAGES, 2):
        script = float(OTHER_SCRIPT.get(one) != OTHER_SCRIPT.get(other))
        family = float(OTHER_FAMILY.get(one, "ie") != OTHER_FAMILY.get(other, "ie"))
        rows.append((one, other, script, family, 0.5 + 0.3 * script + 0.1 * rng.random()))
    return pd.DataFrame(rows, columns=["language", "other_language", "script", "family", "vocabulary"])


def write_study(
    folder: Path,
    *,
    seeds: int = 5,
    steps: tuple[int, ...] = STEPS,
    rise: dict[str, float] | None = None,
    onset: dict[str, float] | None = None,
    fall: float = 0.08,
    transfer: float = 0.05,
    slope: float = -0.02,
) -> Path:
    """Write all tables: R rises by `rise` of each stratum around octave `onset`; D falls by `fall` after step 256;
    causal transfer at the last step is `transfer`; a doubling of the width changes rise / ceiling by `slope`."""
    rise = {"same_family": 0.1, "same_script": 0.06, "disjoint_scripts": 0.03, "clone": 0.05} | (rise or {})
    onset = {"same_family": 9.0, "same_script": 10.0, "disjoint_scripts": 11.0, "clone": 10.0} | (onset or {})
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    concept_level = {stratum: 0.03 * rng.normal(size=len(CONCEPTS)) for stratum in (*rise, "with_clone")}
    for seed in range(1, seeds + 1):
        later = 0.3 * rng.normal()
        for step in steps:
            here = {"part": "seeds", "width": 128, "run_seed": seed, "step": step, "tokens": 1536 * step, **ROW}

            def add(metric: str, value: float, here: dict[str, Any] = here, **where: object) -> None:
                rows.append({**here, "metric": metric, "value": float(value), **where})

            share = 0.0 if step == 0 else 1 / (1 + np.exp((np.array([*onset.values()]) + later - np.log2(step)) / 0.6))
            risen = dict(zip(rise, np.array([*rise.values()]) * share, strict=True))
            for stratum, by in {**risen, None: np.mean([*risen.values()][:3])}.items():
                spread = concept_level[stratum or "same_script"] * (step > 0) + 0.02 * rng.normal(size=len(CONCEPTS))
                values = 0.01 + by + spread - spread.mean() + 0.001 * rng.normal()
                add("rank_transfer", values.mean(), condition=stratum, chance=0.0)
                for concept, value in zip(CONCEPTS, values, strict=True):
                    add("rank_transfer", value, condition=stratum, concept=concept, chance=0.0)
                for metric in ("shared", "shared_shuffled", "shared_mismatched", "transfer_gain", "normalized"):
                    add(metric, 0.03 + by * (metric == "shared") + 0.001 * rng.normal(), condition=stratum, chance=0.03)
                for k in (28, 92, 276, 922):
                    add("heldout_shared", by + 0.001 * rng.normal(), condition=stratum, k=k, chance=0.0)
            for pair in distances().itertuples():
                level = 0.08 * share_of(step) * (1 - pair.script) + 0.004 * rng.normal()
                where = {"language": pair.language, "other_language": pair.other_language}
                add("rank_transfer", level, **where)
            for layer in range(-1, 8):
                add("accuracy_shared", 0.7 + 0.01 * rng.normal(), layer=layer, chance=0.2)
                if layer >= 0:
                    add("shared_units", 0.005 + 0.001 * layer, layer=layer, chance=0.004)
            for metric in ("cka_debiased", "mutual_knn", "bits_per_byte"):
                add(metric, 1.0 + 0.01 * rng.normal(), chance=0.1)
            if step in (0, 2048, steps[-1]):
                carried = transfer * (step == steps[-1])
                for stratum in (None, *rise):
                    for concept in CONCEPTS:
                        add("causal_transfer", carried + 0.02 * rng.normal(), condition=stratum, concept=concept)
                for concept in CONCEPTS:
                    add("causal_own", 0.3 * (step > 0) + 0.02 * rng.normal(), concept=concept)
                add("direction_transfer", 0.6, chance=0.5)
    for width, seed, step in product((32, 64, 128, 256), range(1, seeds + 1), (0, 2048, 10_240)):
        here = {"part": "capacity", "width": width, "run_seed": seed, "step": step, "tokens": 1536 * step, **ROW}
        value = (0.2 + slope * np.log2(width / 32)) * (step > 0) + 0.005 * rng.normal()
        loss = 4.0 - step / 10_240 - 0.1 * np.log2(width / 32) * (step > 0)
        for metric, number, where in (
            ("bits_per_byte", loss, {}),
            ("rank_transfer", value, {"condition": "disjoint_scripts"}),
            ("rank_ceiling", 1.0, {}),
        ):
            rows.append({**here, "metric": metric, "value": float(number), **where})
    for width, seed, step in product((32, 128), (1, 2, 3), (0, 10_240)):
        here = {"part": "clone", "width": width, "run_seed": seed, "step": step, "tokens": 1536 * step, **ROW}
        for metric in ("rank_transfer", "normalized", "shared"):
            rows.append({**here, "metric": metric, "value": 0.4 * (step > 0) + 0.01 * seed, "condition": "clone"})
    pd.DataFrame(rows).to_parquet(folder / "rows.parquet")
    dips = []
    for seed, step in product(range(1, seeds + 1), steps):
        for name, level in (("embedding", 0.6), ("middle", 0.85 - fall * (step > 256) * share_of(step)), ("last", 0.8)):
            right = rng.binomial(20, level if step > 0 or name == "embedding" else 0.6, size=300)
            dips.append(pd.DataFrame({"key": [f"k{key:03}" for key in range(300)], "name": name, "right": right}))
            dips[-1] = dips[-1].assign(run_seed=seed, step=step)
    wide = pd.concat(dips).pivot(index=["run_seed", "step", "key"], columns="name", values="right").astype(float)
    wide.assign(total=20.0, part="seeds", width=128).reset_index().to_parquet(folder / "dips.parquet")
    births = [
        {"part": "seeds", "width": 128, "run_seed": seed, "language": one, "other_language": other, "birth": birth}
        for seed, one, other, birth in product(range(1, seeds + 1), ("de", "en"), ("de", "en"), (512.0, 4096.0, None))
    ]
    pd.DataFrame(births).assign(units=40).to_parquet(folder / "births.parquet")
    pd.DataFrame({"concept": CONCEPTS, "cluster": range(len(CONCEPTS))}).to_parquet(folder / "concepts.parquet")
    distances().to_parquet(folder / "languages.parquet")
    return folder


def share_of(step: int) -> float:
    return 0.0 if step == 0 else float(np.log2(step) / np.log2(20_480))
