"""From result folders of runs to the tables of the study: what is kept, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
from itertools import product
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from analysis.base import Attachment, Row, fingerprint_of
from analysis.measures import load_analyses
from analysis.preregistration import read_plan
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId
from studies.first_light.collect import collect, language_distances, prune
from studies.first_light.study import Study

ROOT = Path(__file__).parents[3]
LIST = """\
analyses:
  - class_path: LanguageProbe
    init_args: {texts: texts.parquet}
  - class_path: ConceptOverlap
    init_args: {concepts: concepts.parquet}
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two seeds at two steps, and a plan."""
    monkeypatch.chdir(tmp_path)
    words = {"de": "a a b", "en": "a a b", "ru": "я я я"}
    texts = [
        (concept, language, f"{concept}{number}", f"{text} " * (number + 1), number % 2)
        for concept, (language, text), number in product("cd", words.items(), range(4))
    ]
    columns = ["concept", "language", "uid", "text", "label"]
    pd.DataFrame(texts, columns=columns).to_parquet("concepts.parquet")
    Path("list.yaml").write_text(LIST)
    Path("plan.sha256").write_text(f"{hashlib.sha256(LIST.encode()).hexdigest()}  list.yaml\n")
    probe, overlap = load_analyses("list.yaml")
    tokenizer = Tokenizer(models.WordLevel({"[unk]": 0, "a": 1, "b": 2, "я": 3}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for seed in (1, 2):
        folder = Path(f"d128-seed{seed}")
        for step in (0, 8):
            snapshot = folder / "snapshots" / f"step_{step:08d}"
            snapshot.mkdir(parents=True)
            tokenizer.save(str(snapshot / "tokenizer.json"))
            here, table = SnapshotId(folder.name, step, 10 * step), ResultTable(folder / "results")
            counts = {name: [4.0, 5.0] for name in ("embedding", "middle", "last", "total")}
            dip = Attachment("dip", pa.table({"key": ["k1", "k2"], **counts}))
            table.write(here, probe, [Row(metric="accuracy_shared", value=0.5, layer=0), dip], 1.0)
            rows = [Row(metric="rank_transfer", value=0.1 * seed, concept=name, condition="clone") for name in "cd"]
            rows += [Row(metric="rank_transfer", value=0.3, language="de", other_language="ru")]
            rows += [Row(metric="ap_best", value=0.3, concept="c"), Row(metric="shared", value=0.2)]
            table.write(here, overlap, rows, 1.0)
    return tmp_path


def test_tables_hold_what_the_study_reads_and_are_the_same_twice(runs: Path) -> None:
    plan = runs / "plan.sha256"
    assert collect(runs, runs / "out", plan) == ["d128-seed1: steps 0, 8", "d128-seed2: steps 0, 8"]
    first = {path.name: path.read_bytes() for path in (runs / "out").iterdir()}
    collect(runs, runs / "again", plan)
    assert first == {path.name: path.read_bytes() for path in (runs / "again").iterdir()}

    study = Study.read(runs / "out")
    assert study.steps_of == {1: [0, 8], 2: [0, 8]}
    assert study.by_concept("rank_transfer", "clone", 8).to_numpy().tolist() == [[0.1, 0.1], [0.2, 0.2]]
    assert study.pairs("rank_transfer", 8).loc[("de", "ru"), 2] == 0.3
    assert "ap_best" not in set(study.main["metric"])
    assert study.clusters == {"c": 0, "d": 1}
    steps, dips, middle = study.dip_arrays
    assert (steps, dips.shape) == ([0, 8], (2, 2, 2))
    assert middle.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_runs_that_lie_elsewhere_stay_in_the_tables(runs: Path) -> None:
    plan, out = runs / "plan.sha256", runs / "out"
    collect(runs, out, plan)
    both = {path.name: path.read_bytes() for path in out.iterdir()}
    (runs / "d128-seed1").rename(runs / "elsewhere")
    assert collect(runs, out, plan)[0] == f"kept of runs that are not in {runs}: 1"
    study = Study.read(out)
    assert study.steps_of == {1: [0, 8], 2: [0, 8]}
    assert study.dip_steps == {1: [0, 8], 2: [0, 8]}
    (runs / "elsewhere").rename(runs / "d128-seed1")
    collect(runs, out, plan)  # a run that is there again is written once
    assert both == {path.name: path.read_bytes() for path in out.iterdir()}


def test_what_depends_on_what_is_kept_where_the_tables_of_experts_are_gone(runs: Path) -> None:
    """They are large: a run may come from another machine without them. That made 58 concepts of 37."""
    _, overlap = load_analyses("list.yaml")
    table = ResultTable(runs / "d128-seed1" / "results")
    for step in table.steps():
        experts = Attachment("experts", pa.table({"concept": ["c", "d"], "cluster": [4, 4]}))
        rows = [Row(metric="rank_transfer", value=0.3, concept=name) for name in "cd"]
        table.write(SnapshotId("d128-seed1", step, 10 * step), overlap, [*rows, experts], 1.0)
    for gone in ([], ["d128-seed1/results/step_00000008"], ["d128-seed1/results/step_00000000"]):
        for folder in gone:
            (runs / folder / "overlap.experts.parquet").unlink()
        collect(runs, runs / "out", runs / "plan.sha256")
        assert Study.read(runs / "out").clusters == {"c": 4, "d": 4}


def test_a_seed_trained_again_gives_what_its_first_run_lacks_and_nothing_else(runs: Path) -> None:
    _, overlap = load_analyses("list.yaml")
    for seed, folder, transfer in ((1, "d128-seed1", 0.1), (1, "again-d128-seed1", 0.7), (2, "again-d128-seed2", 0.2)):
        snapshot = SnapshotId(folder, 8, 80)
        rows = [Row(metric="rank_transfer", value=9.0 * seed, concept=name, condition="clone") for name in "cd"]
        if folder.startswith("d128"):
            rows = [Row(metric="rank_transfer", value=0.1, concept=name, condition="clone") for name in "cd"]
        rows += [Row(metric="causal_own", value=transfer, concept=name) for name in "cd"]
        ResultTable(runs / folder / "results").write(snapshot, overlap, rows, 1.0)
    collect(runs, runs / "out", runs / "plan.sha256")
    study = Study.read(runs / "out")
    assert study.by_concept("causal_own", None, 8).to_numpy().tolist() == [[0.1, 0.1], [0.2, 0.2]]
    assert study.by_concept("rank_transfer", "clone", 8).to_numpy().tolist() == [[0.1, 0.1], [0.2, 0.2]]
    assert sorted(study.again["metric"].unique()) == ["causal_own", "rank_transfer"]


def test_a_step_that_lacks_an_analysis_is_named_and_dependent_concepts_stay_so(runs: Path) -> None:
    probe, overlap = load_analyses("list.yaml")
    experts = Attachment("experts", pa.table({"concept": ["c", "d"], "cluster": [4, 4]}))
    rows = [Row(metric="rank_transfer", value=0.1, concept=name, condition="clone") for name in "cd"]
    for seed in (1, 2):
        table = ResultTable(runs / f"d128-seed{seed}" / "results")
        table.write(SnapshotId(f"d128-seed{seed}", 8, 80), overlap, [*rows, experts], 1.0)
        table.write(SnapshotId(f"d128-seed{seed}", 16, 160), probe, [Row(metric="accuracy", value=0.5)], 1.0)
    said = collect(runs, runs / "out", runs / "plan.sha256")
    assert said[0] == "d128-seed1: steps 0, 8, 16; no overlap at 16"
    assert Study.read(runs / "out").clusters == {"c": 4, "d": 4}


def test_without_a_tokenizer_nothing_is_written(runs: Path) -> None:
    for path in runs.glob("*/snapshots/*/tokenizer.json"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no snapshot has the tokenizer.json"):
        collect(runs, runs / "out", runs / "plan.sha256")
    assert not (runs / "out").exists()


def test_results_that_were_not_planned_are_refused(runs: Path) -> None:
    other = runs / "other.yaml"
    other.write_text(LIST.replace("texts.parquet", "texts.parquet, tokens_per_language: 7"))
    table = ResultTable(runs / "d128-seed2" / "results")
    table.write(SnapshotId("d128-seed2", 8), load_analyses(other)[0], [Row(metric="accuracy", value=1.0)], 1.0)
    with pytest.raises(ValueError, match="language_probe at step 8 was not measured as planned"):
        collect(runs, runs / "out", runs / "plan.sha256")
    assert not (runs / "out").exists()
    with pytest.raises(FileNotFoundError, match="no run with results"):
        collect(runs / "nowhere", runs / "out", runs / "plan.sha256")


def test_distances_of_languages(runs: Path) -> None:
    tokenizer = runs / "d128-seed1" / "snapshots" / "step_00000000" / "tokenizer.json"
    table = language_distances(runs / "concepts.parquet", tokenizer, ["ru", "de", "en"])
    rows = {(row.language, row.other_language): (row.script, row.family, row.vocabulary) for row in table.itertuples()}
    assert rows["de", "en"] == (0.0, 0.0, 0.0)
    assert rows["de", "ru"] == (1.0, 0.5, 1.0)


def test_rows_of_probe_seeds_and_kinds_are_left_out() -> None:
    columns = ("analysis", "metric", "layer", "kind", "condition", "k", "concept", "language", "other_language", "seed")
    pair = {"language": "de", "other_language": "en"}
    rows = [
        {"metric": "shared"},
        {"metric": "shared", "seed": 1},
        {"metric": "shared", "kind": "x"},
        {"metric": "shared", **pair},
        {"metric": "shared", "condition": "clone"},
        {"metric": "shared_units", "layer": 2},
        {"metric": "heldout_shared", "k": 5},
        {"metric": "rank_transfer", **pair},
        {"metric": "rank_transfer", "concept": "c", "condition": "clone"},
        {"metric": "rank_transfer", "concept": "c", "layer": 1},
        {"metric": "bits_per_byte", "language": "de"},
        {"metric": "rank_ceiling"},
    ]
    frame = pd.DataFrame(rows).reindex(columns=list(columns))
    assert prune(frame).index.tolist() == [0, 4, 5, 6, 7, 8]
    assert prune(frame, "clone").index.tolist() == [0, 4]
    assert prune(frame, "capacity").index.tolist() == [11]


PLANNED = {
    "capacity/held_out": "c770badd0a5bdaf5",
    "clone/held_out": "b1349bb488a1bf14",
    "core/held_out": "c770badd0a5bdaf5",
    "capacity/overlap": "5dae927b58f5eb27",
    "clone/overlap": "b3e89238f6cb0669",
    "core/overlap": "2f1c66ad3af88eaf",
    "dear/causal_transfer": "edf4f7b9fe4262e2",
    "dear/concept_directions": "1a548c958ddbfa02",
    "dear/probe_suite": "6668c78b9e275547",
    "followed/trajectories": "faf4eab4ff5acd16",
    "seeds/language_probe": "c9012895e728a4cc",
    "seeds/alignment": "53a891654b6e18fe",
}
"""Fingerprints of the planned analyses without their files: a changed default or `version` would change the plan too,
and needs an amendment there."""


def test_the_committed_lock_holds_and_its_lists_are_those_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "studies" / "first_light", tmp_path / "studies" / "first_light")
    monkeypatch.chdir(tmp_path)  # where there are no runs
    planned = read_plan(Path("studies/first_light/plan.sha256"))
    assert planned["causal_transfer"][0].steps == (0, 2048, 20480)
    found = {
        f"{Path(one.file).stem}/{name}": fingerprint_of(dict(one.settings))
        for name, entries in planned.items()
        for one in entries
    }
    assert found == PLANNED
