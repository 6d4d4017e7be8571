"""A sweep over a published suite with everything wrong that suites have: named, and the rest is measured.

The suite lies in a cache laid out as the hub client writes it (refs, snapshots, blobs); there is no network.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from analysis.checkpoints.executors import Inline
from analysis.checkpoints.hub import HubRevisions
from analysis.checkpoints.loading import Loading
from analysis.commands.run import sweep
from analysis.measures.heldout import HeldOutLoss
from analysis.results import ResultTable

REPO = "lab/suite"
GOOD = [1000, 2000, 3000, 6000, 10_000]


def add_revision(cache: Path, name: str, folder: Path) -> None:
    """What `snapshot_download` leaves behind: a ref, blobs named by hash, a snapshot folder of relative links."""
    repo = cache / "models--lab--suite"
    commit = hashlib.sha1(name.encode()).hexdigest()
    snapshot = repo / "snapshots" / commit
    for part in (snapshot, repo / "blobs", repo / "refs"):
        part.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    (repo / "refs" / name).write_text(commit)


def save(
    folder: Path, seed: int, tokenizer: PreTrainedTokenizerFast, *, container: str = "safetensors", **config: int
) -> Path:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 264, "hidden_size": 16, "n_layer": 1, "n_head": 2} | config
    model = BloomForCausalLM(BloomConfig(**sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if container == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def cache(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, canary: Path) -> Path:
    made, cache = tmp_path / "made", tmp_path / "cache"
    save(made / "1000", 1, byte_tokenizer, container="bin")
    save(made / "2000", 2, byte_tokenizer)
    save(made / "3000", 1, byte_tokenizer)
    truncated = save(made / "5000", 5, byte_tokenizer, container="bin") / "pytorch_model.bin"
    truncated.write_bytes(truncated.read_bytes()[:-2000])
    save(made / "6000", 6, byte_tokenizer, n_head=4)
    edit_config(save(made / "7000", 7, byte_tokenizer), n_layer=2)
    evil = save(made / "8000", 8, byte_tokenizer) / "pytorch_model.bin"
    (evil.parent / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (canary,)

    evil.write_bytes(pickle.dumps({"word_embeddings.weight": Bomb()}, protocol=2))
    edit_config(save(made / "9000", 9, byte_tokenizer), auto_map={"AutoModelForCausalLM": "own.Own"})
    (made / "9000" / "own.py").write_text(f"open({str(canary)!r}, 'w')")
    save(made / "10000", 10, byte_tokenizer)
    save(made / "11000", 11, byte_tokenizer, vocab_size=128)
    for folder in made.iterdir():
        add_revision(cache, f"global_step{folder.name}", folder)
    return cache


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    lines = [
        {"language": language, "uid": str(i), "split": split, "text": f"{greeting} number {i} in {split}"}
        for language, greeting in (("de", "guten Tag"), ("en", "good day"))
        for split in ("train", "valid")
        for i in range(4)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_every_defect_is_named_and_the_others_are_measured(
    cache: Path, texts: Path, canary: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = tmp_path / "results"
    steps = [1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10_000, 11_000]
    source = HubRevisions(
        repo=REPO, cache_dir=cache, template="global_step{step}", steps=steps, loading=Loading(device="cpu")
    )
    analyses = [HeldOutLoss(texts=texts, num_bootstrap=20)]

    outcomes = sweep(source, analyses, results, steps, Inline())

    failed = {outcome.step: outcome.failed["checkpoint"] for outcome in outcomes if outcome.failed}
    reasons = {
        4000: "lab/suite@global_step4000: offline",
        5000: "pytorch_model.bin is truncated or damaged",
        7000: "the weights lack 12 parameters of BloomForCausalLM",
        8000: "pytorch_model.bin is refused",
        9000: "asks to run code from its repository",
        11_000: "the tokenizer has ids up to 259 but the model only 128",
    }
    assert failed.keys() == reasons.keys()
    for step, reason in reasons.items():
        assert reason in failed[step]
        assert f"global_step{step}" in failed[step]
        assert "\n" not in failed[step]
    assert not canary.exists()
    frame = ResultTable(results).frame()
    assert sorted(frame["step"].unique()) == GOOD
    by_step = frame[(frame.metric == "bits_per_byte") & (frame.language == "en")].set_index("step")["value"]
    assert by_step[1000] == by_step[3000] != by_step[2000]

    identity = json.loads((results / "identity.json").read_text())
    assert identity["duplicates"] == [[1000, 3000]]
    assert identity["drift"] == {"6000": ["n_head 4 (usually 2)"]}
    assert identity["failed"].keys() == {str(step) for step in reasons}
    assert "suite: step 3000 (global_step3000) has the weights of step 1000 (global_step1000)" in caplog.text
    assert "suite: step 6000 (global_step6000) differs: n_head 4 (usually 2)" in caplog.text

    again = sweep(source, analyses, results, steps, Inline())
    assert {outcome.step for outcome in again} == reasons.keys(), "a rerun tries only what failed"
