"""What length alone brings is told from what is there without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from analysis.statistics import two_way_interval
from studies.first_light.lengths import length_imbalance, length_table, without
from studies.first_light.study import Study
from tests.studies.first_light.planted import write_study


def test_imbalance_is_that_of_tokens_in_each_half(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for concept, more in (("long", 40), ("alike", 0), ("short", -4)):
        for number in range(400):
            label = number % 2
            words = rng.integers(5, 15) + more * label
            rows.append((concept, "en", f"{concept}{number}", "a " * max(1, words), label))
    columns = ["concept", "language", "uid", "text", "label"]
    pd.DataFrame(rows, columns=columns).to_parquet(tmp_path / "concepts.parquet")
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = length_imbalance(tmp_path / "concepts.parquet", tmp_path / "tokenizer.json")
    assert len(found) == 6
    by = found.pivot(index="concept", columns="half", values="imbalance")
    assert by.loc["long"].tolist() == [0.5, 0.5]
    assert by.loc["alike"].abs().max() < 0.1
    assert by.loc["short"].max() < -0.2


@pytest.mark.parametrize(("level", "slope"), [(0.0, 0.0), (0.0, 8.0), (0.05, 0.0), (0.05, 8.0)])
def test_the_level_without_imbalance_is_what_was_planted(level: float, slope: float) -> None:
    held, means = 0, []
    for draw in range(300):
        rng = np.random.default_rng(draw)
        imbalance = rng.normal(0.02, 0.03, size=58) * rng.normal(0.02, 0.03, size=58)
        concepts = level + slope * imbalance + 0.02 * rng.normal(size=58)
        values = concepts + 0.004 * rng.normal(size=(5, 1)) + 0.01 * rng.normal(size=(5, 58))
        found = without(values, imbalance)
        x = np.stack([np.ones(58), imbalance], axis=1)
        assert found.mean(1) == pytest.approx(np.linalg.lstsq(x, values.T, rcond=None)[0][0])
        contrast = two_way_interval(found)
        means.append(contrast.difference)
        held += contrast.low <= level <= contrast.high
    assert np.mean(means) == pytest.approx(level, abs=0.001)
    assert 0.92 <= held / 300 <= 0.985


def test_r_that_is_length_alone_has_no_level_in_the_table(tmp_path: Path) -> None:
    study = Study.read(write_study(tmp_path, steps=(0, 64, 20_480)))
    lengths = study.lengths.copy()
    place = lengths.groupby("concept").ngroup() / 57
    lengths["imbalance"] = 0.3 * (place - 0.3)
    rows = study.rows.copy()
    by_concept = lengths.groupby("concept")["imbalance"].first()
    planted = (rows["metric"] == "rank_transfer") & rows["concept"].notna() & (rows["step"] == 20_480)
    first = rows[(rows["metric"] == "rank_transfer") & rows["concept"].notna() & (rows["step"] == 0)]
    keys = ["run_seed", "condition", "concept"]
    before = rows.loc[planted, keys].merge(first[[*keys, "value"]], on=keys, how="left")["value"].to_numpy()
    rows.loc[planted, "value"] = before + 3.0 * rows.loc[planted, "concept"].map(by_concept).to_numpy() ** 2
    table = length_table(Study(rows, study.dips, study.births, study.clusters, study.languages, lengths))
    assert [row[0] for row in table.rows][:1] == ["all natural pairs"]
    for row in table.rows:
        assert float(row[2]) > 0.9, "R goes with length"
        assert abs(float(row[5].split()[0])) < 0.002, "and without it there is no rise"
