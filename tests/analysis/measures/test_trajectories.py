"""A planted unit is followed: born when it was planted, in one language before the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score
from transformers import PreTrainedModel

import analysis.experts.table
import analysis.measures.trajectories
from analysis.base import Attachment, Row
from analysis.cost import Shape
from analysis.extraction.responses import Responses
from analysis.extraction.sites import UnitSpace, find_sites
from analysis.measures.overlap import ConceptOverlap
from analysis.measures.trajectories import Trajectories, find_births
from analysis.results import ResultTable
from analysis.snapshots import Snapshot, SnapshotId

POSITIVES, NUM_TEXTS, UNIT, STEPS = 12, 72, 300, (0, 8, 16, 32)


@pytest.fixture
def concepts(tmp_path: Path) -> Path:
    path = tmp_path / "c.jsonl"
    with path.open("w") as file:
        for language in ("de", "en"):
            for concept in ("fire", "water"):
                for index in range(36):
                    row = {"concept": concept, "language": language, "uid": f"{concept}/{index:02d}"}
                    row |= {"text": f"{language} {concept} {index}", "label": int(index < POSITIVES)}
                    file.write(json.dumps(row) + "\n")
    return path


def test_births_of_a_planted_unit(
    concepts: Path,
    tmp_path: Path,
    tiny_xglm: PreTrainedModel,
    tiny_snapshot: Callable[..., Snapshot],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unit 300 knows fire in German from step 8 on, in English from step 16 on."""
    space = UnitSpace(find_sites(tiny_xglm))
    planted: dict[int, torch.Tensor] = {}
    for step in STEPS:
        values = torch.randn(space.num_units, 2 * NUM_TEXTS, generator=torch.Generator().manual_seed(step))
        if step >= 8:
            values[UNIT, :POSITIVES] += 10.0  # keys sort as fire/00 ... fire/35, water/00 ...
        if step >= 16:
            values[UNIT, NUM_TEXTS : NUM_TEXTS + POSITIVES] += 10.0
        planted[step] = values

    def fake(snapshot: Snapshot, *_: object) -> Iterator[Responses]:
        for site, offset in zip(space.sites, space.offsets.tolist(), strict=False):
            yield Responses(site, planted[snapshot.id.step][offset : offset + site.num_units], 0)

    monkeypatch.setattr(analysis.experts.table, "iter_responses", fake)
    monkeypatch.setattr(analysis.measures.trajectories, "iter_responses", fake)
    table, found = ResultTable(tmp_path / "tiny" / "results"), tiny_snapshot(tiny_xglm)
    options = {"concepts": str(concepts), "k": 5, "surface": False, "bootstrap": 100}
    snapshots = [Snapshot(SnapshotId("tiny", step), found.model, found.tokenizer) for step in STEPS]
    overlap = ConceptOverlap(**options)  # type: ignore[arg-type]
    table.write(snapshots[-1].id, overlap, overlap.measure(snapshots[-1]), 0.1)
    follow = Trajectories(**options, results=str(tmp_path / "{run}" / "results"), frozen_step=32, frozen_k=3)  # type: ignore[arg-type]
    measured: dict[int, list[Row | Attachment]] = {}
    for snapshot in snapshots:
        measured[snapshot.id.step] = list(follow.measure(snapshot))
        table.write(snapshot.id, follow, measured[snapshot.id.step], 0.1)

    found_metrics = {row.metric for row in measured[32] if isinstance(row, Row)}
    assert set(follow.headlines) <= found_metrics, "what stands first on the page is measured"

    elsewhere = Trajectories(**options, results=follow.results, frozen_step=32, site_set=["mlp.in", "mlp.out"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"are units of other sites than \['mlp.in', 'mlp.out'\]; give the site_set"):
        list(elsewhere.measure(snapshots[0]))

    births = find_births(table, share=5 / space.num_units)
    own = births[(births["unit"] == UNIT) & (births["concept"] == "fire") & (births["language"] == "de")]
    assert dict(zip(own["other_language"], own["birth"], strict=True)) == {"de": 8, "en": 16}
    assert own["other_language"].tolist() == ["de", "en"], "the order in which languages join"
    rest = births[(births["concept"] == "water") & (births["other_language"] != births["language"])]
    assert rest["birth"].isna().mean() > 0.8, "noise is followed nowhere"

    units = table.attachment(16, "trajectories", "units").to_pandas()
    path = table.path(16, "trajectories", "units")
    stored = pq.read_table(path)
    pq.write_table(stored.filter(pc.not_equal(stored["unit"], UNIT)), path)  # step 16 followed other units
    births = find_births(table, share=5 / space.num_units)
    assert births[births["unit"] == UNIT]["birth"].dropna().eq(32).all(), "what was not looked at is not known to be in"

    row = units[(units["unit"] == UNIT) & (units["language"] == "en") & (units["concept"] == "fire")].iloc[0]
    assert row["ap_de"] == row["ap_en"] == 1.0
    assert row["rank_de"] == row["rank_en"] == 0.0
    other = units[(units["language"] == "en") & (units["concept"] == "water")].iloc[0]
    values = planted[16][int(other["unit"]), NUM_TEXTS + 36 : 2 * NUM_TEXTS].numpy()
    assert other["ap_en"] == pytest.approx(average_precision_score(np.arange(36) < POSITIVES, values), abs=1e-3)
    for step, rows in measured.items():
        by_pair = {
            (entry.metric, entry.language, entry.other_language): entry for entry in rows if isinstance(entry, Row)
        }
        assert by_pair["frozen_rank", "de", "de"].chance == 0.5
        share = by_pair["frozen_experts", "de", "de"]
        assert share.chance == pytest.approx(5 / space.num_units)
        assert (share.value == 1.0) == (step == 32), "all frozen experts are experts at their own step"


def test_experts_that_are_not_there_are_named(
    concepts: Path, tmp_path: Path, tiny_snapshot: Callable[..., Snapshot], tiny_xglm: PreTrainedModel
) -> None:
    follow = Trajectories(concepts=str(concepts), results=str(tmp_path / "none"), frozen_step=8)
    with pytest.raises(FileNotFoundError, match="step_00000008"):
        list(follow.measure(tiny_snapshot(tiny_xglm)))


@pytest.mark.parametrize("bad", [{"frozen_k": 0}, {"frozen_k": -1}, {"frozen_step": -5}])
def test_numbers_that_name_no_expert_are_refused(bad: dict[str, int]) -> None:
    """`frozen_k=-1` followed all experts but the last."""
    ((option, value),) = bad.items()
    with pytest.raises(ValueError, match=f"trajectories: {option}={value} must be at least"):
        Trajectories(**({"concepts": "c", "results": "r", "frozen_step": 0} | bad))  # type: ignore[arg-type]


def test_labellings_that_are_never_ranked_cost_nothing(concepts: Path) -> None:
    shape = Shape(layers=2, width=16, ffn=64, vocabulary=256, body=10_000.0, head=8_192.0)
    twice, once = (
        ConceptOverlap(concepts=str(concepts), halves=False, shuffles=number).work(shape) for number in (2, 1)
    )
    for options in ({}, {"halves": False, "shuffles": 9}):
        follow = Trajectories(concepts=str(concepts), results="r", frozen_step=8, **options)  # type: ignore[arg-type]
        assert follow.work(shape) == pytest.approx(once - (twice - once))
