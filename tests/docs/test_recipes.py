"""docs/recipes.md: every program of the page runs, in the order of the page, on a small run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, XGLMConfig, XGLMForCausalLM

from analysis.measures.overlap import ConceptOverlap
from analysis.results import ResultTable
from analysis.snapshots import Snapshot, SnapshotId
from babelscope.files import file_sha256

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "recipes.md").read_text(), re.MULTILINE | re.DOTALL)


def write_concepts(path: Path) -> None:
    """Random letters; a concept is a doubled letter, the same in both languages."""
    generator = np.random.default_rng(0)
    rows = []
    for concept, mark in (("fire", "qq"), ("water", "jj"), ("wood", "zz")):
        for number in range(45):
            for language, letters in (("en", "abcdefgh"), ("es", "ijklmnop")):
                text = "".join(generator.choice(list(letters), size=9)) + (mark if number < 15 else "")
                key = {"concept": concept, "language": language, "uid": f"{concept}{number}"}
                rows.append({**key, "text": text, "label": int(number < 15)})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    """`runs/demo` with three snapshots and their overlap, and the sample's text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    write_concepts(tmp_path / "concepts.jsonl")
    analysis = ConceptOverlap(concepts="concepts.jsonl", share=0.05, bootstrap=50, surface=False)
    table = ResultTable(tmp_path / "runs" / "demo" / "results")
    config = XGLMConfig(vocab_size=len(byte_tokenizer), d_model=16, ffn_dim=32, num_layers=2, attention_heads=2)
    config.update({"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256})
    for step in (0, 64, 640):
        torch.manual_seed(step)
        model = XGLMForCausalLM(config).eval()
        folder = tmp_path / "runs" / "demo" / "snapshots" / f"step_{step:08d}"
        model.save_pretrained(folder)
        byte_tokenizer.save_pretrained(folder)
        about = {"run": "demo", "step": step, "tokens": step * 100}
        about |= {"weights_sha256": file_sha256(folder / "model.safetensors")}
        (folder / "snapshot.json").write_text(json.dumps(about))
        snapshot = Snapshot(SnapshotId("demo", step, step * 100), model, byte_tokenizer)
        table.write(snapshot.id, analysis, list(analysis.measure(snapshot)), seconds=1.0)
    return tmp_path


def test_every_program_runs_and_says_something(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    said = []
    for program in PROGRAMS:
        exec(compile(program, "docs/recipes.md", "exec"), names)
        said.append(capsys.readouterr().out)
    assert len(said) == 5
    tables, own, compared, measured, tidy = said
    assert "ap_en" in tables
    assert len(own.splitlines()) == 3
    assert "Contrast(difference=" in compared
    assert "bits_per_byte en" in measured
    assert "rank_transfer" in tidy
    assert "Plotly" in (demo / "shared_units.html").read_text(encoding="utf-8")


def test_the_units_of_the_first_recipe_are_those_that_both_languages_have(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {}
    exec(compile(PROGRAMS[0], "docs/recipes.md", "exec"), names)
    shared, water = names["shared"], names["water"]
    counts = water.groupby("unit")["language"].nunique()  # type: ignore[attr-defined]
    assert counts[shared.index[0]] == counts.max()  # type: ignore[attr-defined]
    sentences = names["sentences"]
    shown = sentences[(sentences["concept"] == "water") & (sentences["unit"] == shared.index[0])]  # type: ignore[index,attr-defined]
    assert shown.groupby("language").size().to_dict() == {"en": 2, "es": 2}
