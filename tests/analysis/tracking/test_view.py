"""The saved view, as the object that would be sent: no network."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from analysis.__main__ import main
from analysis.base import Attachment, Row
from analysis.measures.language_probe import LanguageProbe
from analysis.measures.overlap import ConceptOverlap
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId

workspaces = pytest.importorskip("wandb_workspaces.workspaces")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    table, at = ResultTable(tmp_path / "results"), SnapshotId("planted", 8, 800)
    rows = [Row(metric=metric, value=0.1, chance=0.0) for metric in ("rank_transfer", "shared", "ap_best")]
    rows += [Row(metric="shared_units", value=1.0, layer=layer) for layer in range(3)]
    expert = {"concept": "water", "language": "en", "rank": 0, "layer": 1, "kind": "mlp.in", "index": 7}
    experts = pa.Table.from_pylist([expert | {"ap": 0.5, "auroc": 0.7}])
    table.write(at, ConceptOverlap(concepts="none.jsonl"), [*rows, Attachment("experts", experts)], 1.0)
    rows = [Row(metric="accuracy", value=0.5), *(Row(metric="accuracy", value=0.5, layer=n) for n in range(40))]
    table.write(at, LanguageProbe(texts="none.parquet"), rows, 1.0)
    row = {"row": 0, "kind": "train", "step": 8, "tokens": 800, "time": 0.0}
    values = {"train/loss": 3.0, "val/bits_per_byte/en": 2.0, "val/bits_per_byte/de": 2.5, "optim/lr_0": 0.1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row | {"values": values}) + "\n")
    return tmp_path


def test_a_view_shows_what_a_verdict_stands_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = []
    monkeypatch.setattr(workspaces.Workspace, "save", lambda self: saved.append(self))
    monkeypatch.setattr(workspaces.Workspace, "url", "https://example.org/team/languages?nw=1")
    assert main(["view", str(run), "--entity", "team", "--project", "languages"]) == 0
    assert "team/languages" in capsys.readouterr().out
    (section,) = saved[0].sections
    lines = {panel.title: panel.y for panel in section.panels if hasattr(panel, "y")}
    assert lines["Loss of training"] == ["train/loss"]
    assert lines["Held-out loss by language"] == ["val/bits_per_byte/en", "val/bits_per_byte/de"]
    assert lines["overlap: headlines"] == ["overlap/rank_transfer", "overlap/shared"]
    assert lines["overlap: by layer"] == [f"overlap/shared_units/L0{layer}" for layer in range(3)]
    assert len(lines["language_probe: by layer"]) == 30
    assert all(panel.x == "progress/step" for panel in section.panels if hasattr(panel, "y"))
    media = {panel.title: panel.media_keys for panel in section.panels if hasattr(panel, "media_keys")}
    assert media["Layers by snapshots"] == ["heatmaps/language_probe/accuracy", "heatmaps/overlap/shared_units"]
    assert media["Experts, texts"] == ["tables/overlap_experts"]
    assert "panels/overlap/rank_transfer" in media["With chance and step 0"]
    assert 8 <= len(section.panels) <= 10
    assert "Run History Line Plot" in saved[0]._to_model().model_dump_json(), "it can be sent"


def test_without_a_login_it_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["view", str(run), "--entity", "team"]) == 2
    said = capsys.readouterr().err
    assert "view: not saved, W&B says: No API key configured" in said


def test_a_folder_without_anything_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(tmp_path), "--entity", "team"]) == 2
    assert "nothing that a view could show" in capsys.readouterr().err
