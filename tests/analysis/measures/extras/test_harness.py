"""Harness tasks: a local task scores what the model's own log-likelihoods say, live generators are left alone."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from analysis.measures import build_analyses
from analysis.measures.extras.harness import EvalHarness
from analysis.snapshots import Snapshot

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install 'babelscope[eval]'"
)
QUESTIONS = 24


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one multiple-choice task over a local file."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = tmp_path / "tasks"
    folder.mkdir()
    generator = random.Random(0)
    rows = [
        {
            "question": "".join(generator.choices("abcdefgh ", k=12)),
            "choices": ["".join(generator.choices("abcdefgh", k=5)) for _ in range(3)],
            "answer": generator.randrange(3),
        }
        for _ in range(QUESTIONS)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = {
        "task": "letters_en",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    (folder / "letters_en.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder


def accuracy(snapshot: Snapshot, path: Path) -> float:
    """Share of the questions whose answer has the largest log-likelihood after the question, computed directly."""
    right = []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        scores = []
        for choice in row["choices"]:
            context = snapshot.tokenizer(row["question"])["input_ids"]
            whole = snapshot.tokenizer(f"{row['question']} {choice}")["input_ids"]
            with torch.no_grad():
                logits = snapshot.model(torch.tensor([whole])).logits[0].log_softmax(-1)
            tail = range(len(context), len(whole))
            scores.append(sum(float(logits[place - 1, whole[place]]) for place in tail))
        right.append(int(np.argmax(scores)) == row["answer"])
    return float(np.mean(right))


@needs_harness
def test_a_local_task_scores_what_the_model_says(
    tasks: Path, tiny_snapshot: Callable[..., Snapshot], tiny_xglm: PreTrainedModel
) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    weights = {name: value.clone() for name, value in tiny_xglm.state_dict().items()}
    analysis = EvalHarness(tasks={"letters_en": "en"}, include=str(tasks), batch_size=4)
    rows = list(analysis.measure(snapshot))
    assert [(row.metric, row.condition, row.language) for row in rows] == [("task_score", "letters_en/acc", "en")]
    expected = accuracy(snapshot, tasks.parent / "questions.jsonl")
    assert rows[0].value == pytest.approx(expected)
    half = 1.96 * np.sqrt(expected * (1 - expected) / (QUESTIONS - 1))
    assert rows[0].high == pytest.approx(expected + half)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(torch.equal(weights[name], value) for name, value in tiny_xglm.state_dict().items())
    with pytest.raises(ValueError, match="the harness has no task 'letters_es'"):
        list(EvalHarness(tasks={"letters_es": "es"}, include=str(tasks)).measure(snapshot))


def test_the_harness_cannot_change_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch, tiny_snapshot: Callable[..., Snapshot], tiny_xglm: PreTrainedModel
) -> None:
    """Given a tokenizer without padding, the harness makes another of its tokens the padding."""

    def take(pretrained: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **_: object) -> None:
        tokenizer.pad_token_id = tokenizer.unk_token_id

    parts = {
        "lm_eval": {"simple_evaluate": lambda **_: {"results": {"letters_en": {"acc,none": 0.5}}}},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": take},
        "lm_eval.tasks": {"TaskManager": lambda include_path: SimpleNamespace(all_tasks=["letters_en"])},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members, __spec__=ModuleSpec(name, None), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    snapshot = tiny_snapshot(tiny_xglm)
    padding = snapshot.tokenizer.pad_token
    (row,) = EvalHarness(tasks={"letters_en": "en"}).measure(snapshot)
    assert row.value == 0.5
    assert snapshot.tokenizer.pad_token == padding


def test_a_changed_task_makes_results_stale(tasks: Path) -> None:
    before = EvalHarness(tasks={"letters_en": "en"}, include=str(tasks)).fingerprint()
    assert EvalHarness(tasks={"letters_en": "en"}, include=str(tasks), batch_size=1).fingerprint() == before
    path = tasks / "letters_en.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert EvalHarness(tasks={"letters_en": "en"}, include=str(tasks)).fingerprint() != before


def test_without_the_extra_the_way_out_is_said(
    monkeypatch: pytest.MonkeyPatch, tiny_snapshot: Callable[..., Snapshot], tiny_xglm: PreTrainedModel
) -> None:
    (analysis,) = build_analyses([{"class_path": "EvalHarness", "init_args": {"tasks": {"xnli_es": "es"}}}])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed; pip install 'babelscope\[eval\]'"):
        list(analysis.measure(tiny_snapshot(tiny_xglm)))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"tasks": {}}, "tasks is empty"), ({"tasks": {"a": ""}, "num_fewshot": -1}, "num_fewshot=-1")],
)
def test_useless_options_are_refused(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EvalHarness(**options)
