"""The W&B page made again: read back by W&B's own reader, for a training and for results without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import yaml

from analysis.__main__ import main
from analysis.base import Attachment, Row
from analysis.measures.language_probe import LanguageProbe
from analysis.measures.overlap import ConceptOverlap
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId
from analysis.tracking.media import heatmap, strips

Sessions = Callable[[Path], list[Any]]
EXPERT = {
    "concept": "water",
    "language": "en",
    "rank": 0,
    "layer": 1,
    "kind": "mlp.in",
    "index": 7,
    "ap": 0.5,
    "auroc": 0.7,
}
OVERLAP = ConceptOverlap(concepts="none.jsonl")
PROBE = LanguageProbe(texts="none.parquet")


def measure(results: Path, step: int, *, tokens: int | None, layers: int = 3) -> None:
    table, at = ResultTable(results), SnapshotId("planted", step, tokens)
    rows = [Row(metric="rank_transfer", value=0.01 * step, chance=0.0), Row(metric="shared", value=0.1, chance=0.01)]
    rows += [Row(metric="shared", value=0.2, language="de", other_language="en", chance=0.01)]
    rows += [Row(metric="shared_units", value=1.0 + layer, layer=layer) for layer in range(layers)]
    experts = Attachment("experts", pa.Table.from_pylist([EXPERT]))
    table.write(at, OVERLAP, [*rows, experts], 2.0)
    accuracy = [Row(metric="accuracy", value=0.5, layer=layer, chance=0.1) for layer in range(-1, layers)]
    table.write(at, PROBE, [Row(metric="accuracy", value=0.5, chance=0.1), *accuracy], 3.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training of 16 steps, of which the analyses of step 0 are in the record and those of step 16 are not."""
    root = tmp_path / "planted"
    for step in (0, 16):
        measure(root / "results", step, tokens=100 * step)
    config = {"seed_everything": 3, "model": {"d_model": 8}, "data": {"languages": ["de", "en"], "batch_size": 2}}
    config["data"]["block_size"] = 50
    config["trainer"] = {"max_steps": 16, "callbacks": [{"class_path": "a.B", "init_args": {"every": 4}}]}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    (root / "run.json").write_text(json.dumps({"name": "planted", "wandb_id": "abc", "git": "f00d"}))
    rows: list[dict[str, Any]] = [
        {"kind": "analysis", "values": {"overlap/shared": 0.1, **{f"analysis_cost/seconds/{n}": 1.0 for n in NAMES}}},
        {"kind": "train", "values": {"train/loss": 3.0}},
        {"kind": "val", "values": {"val/bits_per_byte/mean": 2.0}},
        {"kind": "val", "values": {"val/bits_per_byte/mean": 2.5}},
    ]
    lines = [
        json.dumps({"row": number, "step": step, "tokens": 100 * step, "time": 0.0, **row})
        for number, (step, row) in enumerate(zip((0, 8, 8, 16), rows, strict=True))
    ]
    (root / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (root / "report.html").write_text("<p>")
    (root / "snapshots" / "step_00000016").mkdir(parents=True)
    about = {"data_fingerprint": "feed", "weights_sha256": "beef"}
    (root / "snapshots" / "step_00000016" / "snapshot.json").write_text(json.dumps(about))
    return root


NAMES = ("language_probe", "overlap")


def test_a_training_is_rebuilt_with_figures_config_summary_and_artifacts(
    run: Path, wandb_sessions: Sessions, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(run)]) == 0
    (session,) = wandb_sessions(run)
    assert str(session.folder) in capsys.readouterr().out
    assert session.run_id != "abc", "a run of its own beside the one that training wrote"
    assert session.ended
    history = session.history
    assert [(row["progress/step"], row["progress/tokens"]) for row in history] == [
        (0, 0),
        (8, 800),
        (8, 800),
        (16, 1600),
        (16, 1600),
    ]
    last = history[-1]  # only in the results: the same keys as live
    assert last["overlap/rank_transfer"] == pytest.approx(0.16)
    assert last["overlap/shared_units/L02"] == 3.0
    assert last["progress/snapshot"] == 1
    for key in ("panels/overlap/rank_transfer", "pairs/overlap/shared", "panels/language_probe/accuracy"):
        assert last[f"{key}._type"] == "plotly-file"
    drawn = session.folder / "files" / last["panels/overlap/rank_transfer.path"]
    assert json.loads(drawn.read_text())["layout"]["yaxis"]["title"]["text"] == "rank correlation"
    assert last["layers/language_probe/accuracy._type"] == "histogram"
    assert last["layers/language_probe/accuracy.bins"] == [-1, 0, 1, 2, 3], "one bin a layer"
    assert last["heatmaps/overlap/shared_units._type"] == "image-file"
    assert last["tables/overlap_experts._type"] == "table-file"

    axes = {metric.get("name"): metric.get("step_metric") for metric in session.metrics}
    assert axes["heatmaps/overlap/shared_units"] == axes["tables/overlap_experts"] == "progress/snapshot"

    assert session.config["model.d_model"] == 8
    assert session.config["trainer.callbacks.B.every"] == 4
    assert session.config["analyses.overlap.k"] == OVERLAP.k
    assert session.config["tokens"] == 1600
    assert session.config["data_fingerprint"] == "feed"
    assert session.config["git"] == "f00d"
    assert "versions.torch" in session.config

    assert session.summary["best/val/bits_per_byte/mean"] == 2.0
    assert session.summary["best/step"] == 8
    assert session.summary["last/val/bits_per_byte/mean"] == 2.5
    assert session.summary["overlap/shared_chance"] == 0.01
    assert session.summary["overlap/rank_transfer_step0"] == 0.0
    assert not any(key.endswith(("_chance", "_step0")) for row in history for key in row)
    assert {"results", "report", "model"} <= set(session.artifacts)


def test_results_without_a_training_are_drawn_over_tokens_under_the_same_keys(
    tmp_path: Path, wandb_sessions: Sessions
) -> None:
    results = tmp_path / "bloom"
    for step in (1000, 10000):
        measure(results, step, tokens=step * 4096)
    assert main(["replay", str(results), "--project", "shared", "--tags", "bloom"]) == 0
    (session,) = wandb_sessions(results)
    assert [row["progress/tokens"] for row in session.history] == [4096000, 40960000]
    assert all("overlap/shared_units/L02" in row for row in session.history)
    star = next(metric for metric in session.metrics if metric.get("glob_name") == "*")
    assert star["step_metric"] == "progress/tokens"
    assert session.run.get("job_type") == "analyze"
    assert session.run.get("project") == "shared"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "[1]", "run.json: not JSON with keys"),
        ("config.yaml", "a: [", "config.yaml: not valid YAML"),
        ("config.yaml", "- a", "config.yaml: expected a configuration with keys"),
        ("metrics.jsonl", "null\n{}\n", "metrics.jsonl:1: not a JSON row"),
    ],
)
def test_a_broken_file_is_one_clear_line(
    run: Path, name: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).write_text(content)
    assert main(["replay", str(run)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (run / "wandb").exists()


def test_nothing_to_replay_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["replay", str(tmp_path)]) == 2
    assert "nothing to replay" in capsys.readouterr().err


def frame(values: dict[int, float], metric: str = "accuracy") -> pd.DataFrame:
    rows = [{"analysis": "x", "metric": metric, "value": value, "layer": layer} for layer, value in values.items()]
    fields = ("kind", "condition", "k", "concept", "language", "other_language", "seed")
    return pd.DataFrame(rows).assign(step=0, **dict.fromkeys(fields))


def test_a_measure_below_zero_has_no_strip_since_a_histogram_cannot_show_it() -> None:
    assert list(strips(frame({0: 0.5, 1: 0.25}), "x")) == [("accuracy", [0.5, 0.25], [0, 1, 2])]
    assert not list(strips(frame({0: 0.5, 1: -0.25}), "x"))


def test_the_heatmap_shows_the_highest_value_lightest_and_the_first_layer_at_the_bottom() -> None:
    drawn = heatmap(frame({0: 0.1, 1: 0.9}), "x", ["nothing", "accuracy"])
    assert drawn is not None
    metric, image = drawn
    assert metric == "accuracy"
    top, bottom = (sum(image.getpixel((image.width - 5, y))) for y in (2, 30))
    assert top > bottom
