"""A run is published to a hub on loopback and comes back as a suite, equal to the bit; what stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from analysis.__main__ import main
from analysis.base import Row
from analysis.checkpoints.hub import HubRevisions
from analysis.checkpoints.options import Loading
from analysis.measures.heldout import HeldOutLoss
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId
from babelscope.files import file_sha256

REPO = "lab/study"
STEPS = (0, 8, 64)


@pytest.fixture
def run(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder of three snapshots with one result and a configuration that names a private path."""
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    folder = tmp_path / "runs" / "study"
    for step in STEPS:
        torch.manual_seed(step)
        snapshot = folder / "snapshots" / f"step_{step:08d}"
        config = BloomConfig(vocab_size=len(byte_tokenizer), hidden_size=16, n_layer=1, n_head=2)
        BloomForCausalLM(config).save_pretrained(snapshot)
        byte_tokenizer.save_pretrained(snapshot)
        about = {"run": "study", "step": step, "tokens": step * 100}
        about |= {"weights_sha256": file_sha256(snapshot / "model.safetensors")}
        (snapshot / "snapshot.json").write_text(json.dumps(about))
        rows = [
            Row(metric="bits_per_byte", value=4.0, chance=5.0),
            Row(metric="bits_per_byte", value=4.0, language="en"),
        ]
        table = ResultTable(folder / "results")
        table.write(SnapshotId("study", step, step * 100), HeldOutLoss(texts="none.parquet"), rows, seconds=1.0)
    data = {"languages": ["en", "es"], "sources": [{"init_args": {"path": "/home/somebody/secret.txt"}}]}
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 3, "data": data}))
    return folder


def publish(run: Path, hub: Any, *options: str) -> int:
    return main(["publish", str(run), "--repo", REPO, "--endpoint", hub.endpoint, *options])


def test_a_published_run_comes_back_as_a_suite(
    run: Path, hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(run, hub, "--license", "apache-2.0") == 0, capsys.readouterr().err
    assert "pushed step-0, step-8, step-64, main" in capsys.readouterr().out
    source = HubRevisions(repo=REPO, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", loading=Loading(device="cpu"))
    assert [snapshot_id.step for snapshot_id in source.ids()] == list(STEPS)
    with source.open(source.ids()[1]) as snapshot:
        ours = BloomForCausalLM.from_pretrained(run / "snapshots" / "step_00000008")
        for name, weight in ours.state_dict().items():
            assert torch.equal(snapshot.model.state_dict()[name], weight), name
    files = hub.files[REPO][hub.refs[REPO]["main"]]
    assert json.loads(files["snapshot.json"])["step"] == 64
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["language"] == ["en", "es"]
    assert "| `step-8` | 8 | 800 |" in card
    assert f"repo: {REPO}" in card
    assert "Seed 3." in card
    assert "secret" not in card
    assert str(tmp_path) not in card


def test_what_stopped_goes_on_and_what_is_there_is_left_alone(
    run: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.failing["commit/step-8"] = 400
    assert publish(run, hub) == 2
    assert f"{REPO}@step-8: the hub failed, run again to go on" in capsys.readouterr().err
    assert hub.commits == ["step-0"]
    hub.failing.clear()
    assert publish(run, hub) == 0
    assert hub.commits == ["step-0", "step-8", "step-64", "main"]
    assert publish(run, hub) == 0
    assert hub.commits[4:] == ["main"]


def test_a_dry_run_touches_no_network(run: Path, hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(run, hub, "--steps", "last", "--dry_run") == 0
    said = capsys.readouterr().out
    assert said.startswith("step-64")
    assert "step-8 " not in said
    assert "# study" in said
    assert not hub.requests
    assert not hub.refs


def test_what_cannot_be_published_is_refused_before_anything_is_sent(
    run: Path, hub: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["publish", str(run), "--repo", "study"]) == 2
    assert "--repo study: a repository is owner/name" in capsys.readouterr().err
    assert main(["publish", str(run.parent / "none"), "--repo", REPO]) == 2
    assert "no folder 'snapshots'" in capsys.readouterr().err
    monkeypatch.setattr("analysis.checkpoints.publishing.get_token", lambda: None)
    assert publish(run, hub) == 2
    assert "nobody is logged in" in capsys.readouterr().err
    weights = run / "snapshots" / "step_00000008" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert publish(run, hub) == 2
    assert "is not the file that snapshot.json was written for" in capsys.readouterr().err
    assert not hub.commits
