"""Random networks are drawn like step 0, measured once, and read as a band; a trained network is held against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedModel

from analysis.base import Analysis, Attachment, Row
from analysis.checkpoints.random_networks import Mould, measure_null
from analysis.report.changes import DECISIVE, concept_clusters, find_change
from analysis.report.run import read_run
from analysis.results import ResultTable, null_folder
from analysis.snapshots import Snapshot, SnapshotId

FLOAT32 = {"dtype": "float32"}
CONCEPTS = ("fire", "metal", "metals", "water")


@dataclass(kw_only=True)
class Shared(Analysis):
    """`rank_transfer` of every concept: a little noise that the weights decide, `rise` once the network was trained."""

    default_name: ClassVar[str] = "shared"
    needs_null: ClassVar[bool] = True
    rise: float = 0.0

    def measure(self, snapshot: Snapshot) -> Iterator[Row | Attachment]:
        weight = next(snapshot.model.parameters()).flatten()[: len(CONCEPTS)]
        level = self.rise if snapshot.id.step else 0.0
        for concept, noise in zip(CONCEPTS, weight.tolist(), strict=True):
            for condition in (None, "disjoint_scripts"):
                value = level * (condition is None) + 0.01 * noise
                yield Row(metric="rank_transfer", value=value, concept=concept, condition=condition)
        columns = {"concept": list(CONCEPTS), "cluster": [0, 1, 1, 3]}
        yield Attachment("experts", pa.table(columns))


@dataclass(kw_only=True)
class Alone(Analysis):
    """Compares with nothing."""

    default_name: ClassVar[str] = "alone"

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        yield Row(metric="value", value=1.0)


@pytest.fixture
def trained(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]) -> Snapshot:
    found = tiny_snapshot(tiny_xglm)
    return Snapshot(SnapshotId("tiny", 64), found.model, found.tokenizer)


@pytest.mark.parametrize("name", ["tiny_xglm", "tiny_bloom", "tiny_llama"])
def test_a_random_network_is_drawn_like_step_0_and_touches_nothing(
    name: str, request: pytest.FixtureRequest, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    snapshot = tiny_snapshot(request.getfixturevalue(name))
    before = {key: value.clone() for key, value in snapshot.model.state_dict().items()}
    state = torch.get_rng_state()
    one, again, other = (Mould.of(snapshot).draw(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in snapshot.model.state_dict().items())
    assert type(one.model) is type(snapshot.model)
    assert one.id == SnapshotId(snapshot.id.run, 0, 0)
    assert not one.model.training
    config = snapshot.model.config
    spread = getattr(config, "init_std", None) or config.initializer_range
    drawn, same, differing = (found.model.state_dict() for found in (one, again, other))
    assert drawn.keys() == before.keys()
    for key, value in drawn.items():
        assert torch.equal(value, same[key])
        if value.dim() > 1:
            assert not torch.equal(value, differing[key])
            assert not torch.equal(value, before[key])
            assert float(value.std()) == pytest.approx(spread, rel=0.2), key


def test_networks_are_measured_once_by_the_analyses_that_need_them(trained: Snapshot, tmp_path: Path) -> None:
    analyses = [Shared(), Alone()]
    done = measure_null(Mould.of(trained), analyses, tmp_path, 3, FLOAT32)
    assert done == [f"shared, random network {number}" for number in range(3)]
    assert measure_null(Mould.of(trained), analyses, tmp_path, 3, FLOAT32) == []
    assert measure_null(Mould.of(trained), analyses, tmp_path, 4, FLOAT32) == ["shared, random network 3"]
    assert len(measure_null(Mould.of(trained), analyses, tmp_path, 2, FLOAT32, force=True)) == 2
    assert len(measure_null(Mould.of(trained), [Shared(rise=1.0)], tmp_path, 4, FLOAT32)) == 4, (
        "other settings, other numbers"
    )
    assert measure_null(Mould.of(trained), [Alone()], tmp_path, 5, FLOAT32) == []
    table = ResultTable(tmp_path)
    assert table.steps() == []
    assert table.frame().empty
    assert ResultTable(null_folder(tmp_path, 2)).stamp(0, "shared")["seed"] == 1002


def test_networks_of_another_shape_are_measured_again(
    trained: Snapshot, tiny_llama: PreTrainedModel, tmp_path: Path
) -> None:
    measure_null(Mould.of(trained), [Shared()], tmp_path, 2, FLOAT32)
    before = ResultTable(null_folder(tmp_path, 0)).rows(0, "shared")
    other = replace(trained, model=tiny_llama)  # the same run trained again, with another model
    assert len(measure_null(Mould.of(other), [Shared()], tmp_path, 2, FLOAT32)) == 2
    assert ResultTable(null_folder(tmp_path, 0)).rows(0, "shared") != before
    assert measure_null(Mould.of(other), [Shared()], tmp_path, 2, FLOAT32) == []


def test_the_band_has_the_networks_of_the_same_settings(trained: Snapshot, tmp_path: Path) -> None:
    table = ResultTable(tmp_path)
    assert table.null_band("shared").empty
    measure_null(Mould.of(trained), [Shared()], tmp_path, 3, FLOAT32)
    assert table.null_band("shared").empty, "nothing of the run itself to compare with"
    table.write(trained.id, Shared(), Shared().measure(trained), 0.1)
    band = table.null_band("shared")
    assert band["network"].tolist() == np.repeat([0, 1, 2], 8).tolist()
    assert set(band["step"]) == {0}
    later = Shared(rise=1.0)
    table.write(SnapshotId("tiny", 128), later, later.measure(trained), 0.1)
    assert table.null_band("shared").empty, "the newest result has other settings"


def test_networks_and_network_are_of_one_precision(trained: Snapshot, tmp_path: Path) -> None:
    analysis, table, bfloat16 = Shared(), ResultTable(tmp_path), {"dtype": "bfloat16"}
    for written, told, seen in (
        (FLOAT32, bfloat16, 0),
        (bfloat16, bfloat16, 2),
        (FLOAT32, {}, 2),  # measured live
        ({}, bfloat16, 2),  # networks of before 2026-11-26
        (bfloat16, {}, 0),
    ):
        measure_null(Mould.of(trained), [analysis], tmp_path, 2, written, force=True)
        table.write(trained.id, analysis, analysis.measure(trained), 0.1, told)
        assert table.null_band("shared")["network"].nunique() == seen, (written, told)
    assert len(measure_null(Mould.of(trained), [analysis], tmp_path, 2, FLOAT32)) == 2
    assert measure_null(Mould.of(trained), [analysis], tmp_path, 2, {**FLOAT32, "prefix_token": "<s>"}) == []
    null = ResultTable(null_folder(tmp_path, 0))
    null.write(SnapshotId("tiny", 0, 0), analysis, null.rows(0, "shared"), 0.1, {"prefix_token": None})
    assert len(measure_null(Mould.of(trained), [analysis], tmp_path, 1, {**FLOAT32, "prefix_token": "<s>"})) == 1


@pytest.mark.parametrize("rise", [0.0, 0.5])
def test_the_verdict_is_against_the_band(rise: float, trained: Snapshot, tmp_path: Path) -> None:
    analysis, table = Shared(rise=rise), ResultTable(tmp_path)
    table.write(trained.id, analysis, analysis.measure(trained), 0.1)
    assert find_change(read_run(tmp_path), "shared", DECISIVE) is None, "neither random networks nor step 0"
    measure_null(Mould.of(trained), [analysis], tmp_path, 5, FLOAT32)
    record = read_run(tmp_path)
    found = find_change(record, "shared", DECISIVE)
    apart = find_change(record, "shared", "rank_transfer", "disjoint_scripts")
    assert found is not None
    assert apart is not None
    assert (found.num_networks, found.num_concepts) == (5, 4)
    assert found.contrast.difference == pytest.approx(rise, abs=0.01)
    assert (found.contrast.low > 0.0) == (rise > 0.0)
    assert apart.contrast.low <= 0.0 <= apart.contrast.high, "nothing was planted in that stratum"
    assert find_change(record, "shared", "other") is None
    assert concept_clusters(record, "shared", 64, ["water", "metals", "metal", "new"]).tolist() == [3, 1, 1, 7]
    record.table.path(64, "shared", "experts").unlink()
    assert concept_clusters(record, "shared", 64, ["water", "new"]).tolist() == [0, 1], "no table says otherwise"
    experts = Attachment("experts", pa.table({"concept": ["metal", "metals"], "cluster": [1, 1]}))
    row = Row(metric="rank_transfer", value=0.0, concept="metal")
    table.write(replace(trained.id, step=8), analysis, [row, experts], 0.1)
    assert concept_clusters(record, "shared", 64, ["metal", "metals"]).tolist() == [1, 1], "that of another step"
