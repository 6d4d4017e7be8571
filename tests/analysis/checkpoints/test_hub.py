"""Suites on the hub: the real client against a small server on loopback that speaks its API, and against its cache.

The server is a dictionary of commits; it can lose a revision, break a transfer off or answer with an error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from analysis.base import Analysis, Row
from analysis.checkpoints.audit import hash_tensors, read_record, write_record
from analysis.checkpoints.executors import Inline
from analysis.checkpoints.hub import HubRepositories, HubRevisions, HubSubfolders
from analysis.checkpoints.hub_cache import Hub
from analysis.checkpoints.loading import Loading
from analysis.checkpoints.names import Naming
from analysis.checkpoints.source import Checkpoint
from analysis.checkpoints.sweep import missing_analyses, plan, refuse_clash
from analysis.commands.run import sweep
from analysis.results import ResultTable
from analysis.snapshots import CLONES_FILE, Snapshot, SnapshotId
from babelscope.records import Clone

REPO = "lab/suite"
CPU = Loading(device="cpu")


def small_model(seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BloomForCausalLM(BloomConfig(vocab_size=264, hidden_size=16, n_layer=1, n_head=2)).eval()


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[2, 70, 71, 72]])).logits


@pytest.fixture
def packed(tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """`packed(seed, "bin" | "safetensors" | "shards" | "bin shards")`: the files of a small random BLOOM."""

    def pack(seed: int, container: str = "safetensors") -> dict[str, bytes]:
        folder = tmp_path / f"packed-{seed}-{container}"
        model = small_model(seed)
        model.save_pretrained(folder, max_shard_size="8KB" if "shards" in container else "1GB")
        if "bin" in container:
            for path in folder.glob("*.safetensors*"):
                path.unlink()
            state = {key.removeprefix("transformer."): value for key, value in model.transformer.state_dict().items()}
            keys = sorted(state)
            parts = [keys[::2], keys[1::2]] if "shards" in container else [keys]
            names = (
                [f"pytorch_model-{i + 1:05d}-of-00002.bin" for i in range(2)]
                if len(parts) > 1
                else ["pytorch_model.bin"]
            )
            for name, part in zip(names, parts, strict=True):
                torch.save({key: state[key] for key in part}, folder / name)
            if len(parts) > 1:
                index = {
                    "metadata": {},
                    "weight_map": {key: n for n, part in zip(names, parts, strict=True) for key in part},
                }
                (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    return pack


@pytest.fixture
def tokenizer_files(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}


@dataclass(kw_only=True)
class Weights(Analysis):
    """One number that tells two models apart."""

    default_name: ClassVar[str] = "weights"

    def measure(self, snapshot: Snapshot) -> Iterator[Row]:
        yield Row(metric="weight", value=float(next(snapshot.model.parameters()).sum()))


Suite = Callable[..., HubRevisions]


@pytest.fixture
def suite(hub: Any, packed: Callable, tokenizer_files: dict[str, bytes], tmp_path: Path) -> Suite:
    """Four revisions in four containers, their tokenizer in a repository of its own, as BLOOM has it."""
    hub.add(REPO, "main", {"README.md": b"see the branches"})
    for step, container in ((1000, "bin"), (10_000, "safetensors"), (20_000, "shards"), (30_000, "bin shards")):
        hub.add(REPO, f"global_step{step}", packed(step, container))
    hub.add("lab/tokenizer", "main", tokenizer_files)

    def make(**options: object) -> HubRevisions:
        chosen: dict = {"repo": REPO, "tokenizer": "lab/tokenizer", "loading": CPU, "endpoint": hub.endpoint}
        return HubRevisions(**(chosen | {"cache_dir": tmp_path / "cache"} | options))

    return make


def test_branches_are_discovered_and_read_in_every_container(suite: Suite) -> None:
    source = suite(naming=Naming(tokens_per_step=524_288))
    assert [i.step for i in source.ids()] == [1000, 10_000, 20_000, 30_000]
    assert source.ids()[0] == SnapshotId("suite", 1000, 524_288_000)
    for snapshot_id in source.ids():
        with source.open(snapshot_id) as snapshot:
            assert torch.equal(logits(snapshot.model), logits(small_model(snapshot_id.step)))


def test_describing_a_suite_downloads_no_weights(suite: Suite, hub: Any) -> None:
    source = suite()
    described = [source.describe(checkpoint) for checkpoint in source.checkpoints()]
    assert all(not checkpoint.cached and (checkpoint.size or 0) > 1000 for checkpoint in described)
    assert [checkpoint.marks["commit"] for checkpoint in described] == [
        hub.refs[REPO][checkpoint.name] for checkpoint in described
    ]
    assert hub.downloads() == []


def test_duplicates_are_known_before_a_download(suite: Suite, hub: Any, packed: Callable) -> None:
    hub.add(REPO, "global_step40000", packed(1000, "bin"))
    source = suite()
    digests = {c.id.step: source.describe(c).digest for c in source.checkpoints()}
    assert digests[40_000] == digests[1000] is not None
    assert len(set(digests.values())) == 4


def test_what_is_cached_needs_no_network_at_all(suite: Suite, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = suite()
    for checkpoint in source.checkpoints():
        with source.open(checkpoint.id):
            pass
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    again = suite(endpoint="http://127.0.0.1:1")
    assert again.ids() == source.ids()
    assert all(checkpoint.cached for checkpoint in again.checkpoints())
    for snapshot_id in again.ids():
        assert again.describe(again.find(snapshot_id)).size
        with again.open(snapshot_id) as snapshot:
            assert torch.equal(logits(snapshot.model), logits(small_model(snapshot_id.step)))
    assert hub.requests == []


def test_offline_names_what_the_cache_lacks(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"lab/suite: offline \(HF_HUB_OFFLINE\) and nothing of it in the cache"
    ):
        suite().ids()
    source = suite(template="global_step{step}", steps=[1000])
    with (
        pytest.raises(FileNotFoundError, match=r"lab/suite@global_step1000: offline \(HF_HUB_OFFLINE\) and not in"),
        source.open(source.ids()[0]),
    ):
        pass


def test_a_missing_revision_and_a_missing_repository_are_named(suite: Suite) -> None:
    source = suite(template="global_step{step}", steps=[1000, 350_000])
    with source.open(source.ids()[0]):
        pass
    with (
        pytest.raises(FileNotFoundError, match="lab/suite@global_step350000: no such revision"),
        source.open(source.ids()[1]),
    ):
        pass
    with pytest.raises(FileNotFoundError, match="lab/other: no such repository, or private"):
        suite(repo="lab/other").ids()
    source = suite(tokenizer="lab/none")
    with pytest.raises(FileNotFoundError, match="lab/none@main: no such repository"), source.open(source.ids()[0]):
        pass


def test_a_transfer_that_breaks_off_is_named_and_the_next_try_succeeds(
    suite: Suite, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its own retries
    source = suite(revisions=["global_step10000"])
    hub.broken["model.safetensors"] = 100
    with pytest.raises(ConnectionError, match=r"lab/suite@global_step10000: the "), source.open(source.ids()[0]):
        pass
    assert not source.is_cached(source.checkpoints()[0])
    hub.broken.clear()
    with source.open(source.ids()[0]) as snapshot:
        assert torch.equal(logits(snapshot.model), logits(small_model(10_000)))


def test_a_failing_server_is_named(suite: Suite, hub: Any) -> None:
    hub.failing["/api/"] = 403
    with pytest.raises(ConnectionError, match="lab/suite: the hub failed, run again to go on"):
        suite().ids()
    with pytest.raises(ConnectionError, match="lab/suite: "):
        suite(endpoint="http://127.0.0.1:1").ids()


def test_a_blob_truncated_in_the_cache_is_named(suite: Suite) -> None:
    source = suite(revisions=["global_step10000"])
    path = source.fetch(source.checkpoints()[0]) / "model.safetensors"
    path.resolve().write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"suite step 10000 \(global_step10000\): "), source.open(source.ids()[0]):
        pass


def test_the_disk_budget_is_kept_and_older_files_are_left_alone(suite: Suite, hub: Any) -> None:
    keep = suite(revisions=["global_step1000"])
    keep.fetch(keep.checkpoints()[0])
    (Hub(cache_dir=keep.cache_dir).repo_folder(REPO) / "babelscope_fetched.txt").unlink()
    source = suite(disk_budget_gb=50e-6)
    held = []
    for checkpoint in source.checkpoints():
        with source.open(checkpoint.id):
            held.append(source.hub.bytes_of(REPO, source.hub.fetched(REPO)))
        source.finish(checkpoint)
    assert max(held) <= 50e3 < sum((source.describe(c).size or 0) for c in source.checkpoints())
    assert source.is_cached(source.checkpoints()[0])
    assert not source.is_cached(source.checkpoints()[1])
    with pytest.raises(ValueError, match=r"suite step 10000 .* exceed disk_budget_gb"):
        suite(disk_budget_gb=1e-6).fetch(source.checkpoints()[1])


def test_a_plan_leaves_the_cache_alone_and_a_sweep_evicts_after_the_last_task(
    suite: Suite, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two analyses of one checkpoint are two tasks, of which the first must not take it from the second."""
    results, steps, events = tmp_path / "results", [1000, 10_000], []
    source = suite(revisions=[f"global_step{step}" for step in steps], disk_budget_gb=50e-6)
    for name in ("fetch", "finish"):
        kept = getattr(HubRevisions, name)

        def told(self: HubRevisions, checkpoint: Checkpoint, name: str = name, kept: Callable = kept) -> Any:
            if name == "finish" or not self.is_cached(checkpoint):
                events.append((name, checkpoint.id.step))
            return kept(self, checkpoint)

        monkeypatch.setattr(HubRevisions, name, told)
    analyses = [Weights(name=name) for name in ("one", "two")]
    sweep(source, analyses, results, steps, Inline(prefetch=False), split="analysis")
    assert events == [("fetch", 1000), ("finish", 1000), ("fetch", 10_000), ("finish", 10_000)]
    assert not any(source.is_cached(checkpoint) for checkpoint in source.checkpoints()), (
        "two do not fit beside each other"
    )
    events.clear()
    assert plan(source, analyses, results, steps) == []
    assert events == []
    sweep(source, analyses, results, steps, Inline(prefetch=False))
    assert events == [("finish", 1000), ("finish", 10_000)], "what is complete may go"
    events.clear()
    other = suite(revisions=[f"global_step{step}" for step in steps], run="suite")
    write_record(results, replace(read_record(results, 1000), origin="lab/else", weights_sha256="other"))  # type: ignore[type-var]
    refuse_clash(other, results, [1000], download=False)
    assert events == []
    with pytest.raises(ValueError, match="has other weights at step 1000"):
        refuse_clash(other, results, [1000], download=True)


def test_evicting_keeps_blobs_that_another_revision_uses(suite: Suite, hub: Any, packed: Callable) -> None:
    hub.add(REPO, "global_step50000", packed(10_000))
    source = suite(revisions=["global_step10000", "global_step50000"], disk_budget_gb=80e-6)
    first, second = source.checkpoints()
    source.fetch(first)
    source.fetch(second)
    source.hub.evict(REPO, hub.refs[REPO]["global_step10000"] + "/")
    assert not source.is_cached(first)
    with source.open(second.id) as snapshot:
        assert torch.equal(logits(snapshot.model), logits(small_model(10_000)))


def test_the_random_baseline_needs_no_weights(suite: Suite, hub: Any) -> None:
    source = suite(random_baseline=True)
    with source.open(SnapshotId("suite", 0, 0)) as snapshot:
        assert snapshot.model.config.hidden_size == 16
    assert not any(name.endswith((".bin", ".safetensors")) for name in hub.downloads())


def test_cloned_languages_of_a_published_run_come_with_it(
    hub: Any, tokenizer_files: dict[str, bytes], tmp_path: Path
) -> None:
    """Without them a vocabulary of twice the tokens looks like another model's."""
    BloomForCausalLM(BloomConfig(vocab_size=520, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "made"
    )
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} | tokenizer_files
    hub.add("me/run", "step-8", files | {CLONES_FILE: b'{"en2": {"of": "en", "shift": 256}}'})
    source = HubRevisions(
        repo="me/run", endpoint=hub.endpoint, cache_dir=tmp_path / "cache", loading=CPU, random_baseline=True
    )
    for step in (0, 8):  # the baseline needs no weights
        with source.open(source.ids()[step // 8]) as snapshot:
            assert snapshot.clones == {"en2": Clone("en", 256)}


def test_the_commit_is_known_after_the_download(suite: Suite, hub: Any) -> None:
    source = suite(template="global_step{step}", steps=[1000])
    (checkpoint,) = source.checkpoints()
    place = {"place": f"{REPO}@global_step1000/"}
    assert source.marks(checkpoint) == place
    source.fetch(checkpoint)
    assert source.marks(checkpoint) == place | {"commit": hub.refs[REPO]["global_step1000"]}


def test_other_folders_of_one_commit_are_measured_for_themselves(
    hub: Any, packed: Callable, tokenizer_files: dict[str, bytes], tmp_path: Path
) -> None:
    """`a/step_1` and `b/step_1` share run, step and commit; only results that name no place pass for both."""
    files = dict(tokenizer_files)
    for seed, folder in ((1, "a"), (2, "b")):
        files |= {f"{folder}/step_1/{name}": body for name, body in packed(seed).items()}
    hub.add("lab/folders", "main", files)
    shared: dict = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache", "loading": CPU, "random_baseline": True}
    one = HubSubfolders(repo="lab/folders", select="^a/", **shared)
    other = replace(one, select="^b/")
    first, second = (source.checkpoints()[1] for source in (one, other))
    asked, table = Weights(), ResultTable(tmp_path)
    sweep(one, [asked], tmp_path, [0, 1], Inline())
    [before] = table.rows(1, "weights")
    assert missing_analyses(table, one, first, [asked]) == []
    assert [task.checkpoint.id.step for task in plan(other, [asked], tmp_path, [0, 1])] == [0, 1]
    sweep(other, [asked], tmp_path, [0, 1], Inline())
    assert table.rows(1, "weights") != [before]
    refuse_clash(other, tmp_path, [0, 1], download=True)
    with pytest.raises(ValueError, match=r"results of lab/folders \(b/step_1\); lab/folders \(a/step_1\) has"):
        refuse_clash(one, tmp_path, [0, 1], download=True)
    record = read_record(tmp_path, 1)
    assert record is not None
    assert record.weights_sha256 == hash_tensors(other.tensors(second, other.fetch(second)))
    old = {"commit": hub.refs["lab/folders"]["main"], "dtype": "float32"}
    table.write(second.id, asked, [Row(metric="weight", value=1.0)], 1.0, old)
    assert missing_analyses(table, one, first, [asked]) == missing_analyses(table, other, second, [asked]) == []


def test_a_named_revision_may_be_a_commit(suite: Suite, hub: Any) -> None:
    commit = hub.refs[REPO]["global_step20000"]
    source = suite(revisions={commit: 20_000})
    with source.open(source.ids()[0]) as snapshot:
        assert torch.equal(logits(snapshot.model), logits(small_model(20_000)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "global_step{step}"}, "template and steps go together"),
        ({"template": "global_step", "steps": [1]}, "has no {step}"),
        ({"template": "s{step}", "steps": [1], "revisions": ["s1"]}, "either revisions or a template"),
        ({"select": "step("}, r"lab/suite: select 'step\(' is not a regular expression"),
        ({"disk_budget_gb": -1}, "disk_budget_gb is -1; give gigabytes above 0"),
        ({"disk_budget_gb": float("nan")}, "disk_budget_gb is nan"),
        ({"also": {"final": 7}}, "also: 'final' is not owner/name"),
    ],
)
def test_contradicting_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HubRevisions(repo=REPO, **options)


def test_the_final_model_of_another_repository_ends_the_curve(suite: Suite, hub: Any, packed: Callable) -> None:
    hub.add("lab/final", "main", packed(7, "safetensors"))
    source = suite(also={"lab/final": 40_000, "lab/twin@main": 30_000}, naming=Naming(tokens_per_step=10))
    assert source.ids()[-1] == SnapshotId("suite", 40_000, 400_000)
    assert [checkpoint.name for checkpoint in source.checkpoints()][-2:] == ["global_step30000", "lab/final"]
    with source.open(source.ids()[-1]) as snapshot:
        assert torch.equal(logits(snapshot.model), logits(small_model(7)))
    assert source.marks(source.checkpoints()[-1])["commit"] == hub.refs["lab/final"]["main"]


def test_a_suite_with_a_repository_for_every_checkpoint(hub: Any, packed: Callable, suite: Suite) -> None:
    for step in (5000, 10_000):
        hub.add(f"lab/base_{step // 1000}k", "main", packed(step, "safetensors"))
    shared = {name: getattr(suite(), name) for name in ("tokenizer", "loading", "endpoint", "cache_dir")}
    source = HubRepositories(repo="lab/base_{k}k", steps=[5000, 10_000], disk_budget_gb=50e-6, **shared)
    assert source.ids() == [SnapshotId("base", 5000), SnapshotId("base", 10_000)]
    first, second = source.checkpoints()
    for checkpoint in (first, second):
        with source.open(checkpoint.id) as snapshot:
            assert torch.equal(logits(snapshot.model), logits(small_model(checkpoint.id.step)))
        source.finish(checkpoint)
    assert not source.is_cached(first)
    with pytest.raises(ValueError, match="a single repository is read by HubRevisions"):
        HubRepositories(repo="lab/base", steps=[1])


def test_a_revision_without_a_step_says_how_to_write_it(suite: Suite) -> None:
    with pytest.raises(ValueError, match=r"'final' tells no step; write it as 'name: step'"):
        suite(revisions=["final"]).ids()
    assert suite(select="step[12]0000$").ids() == [SnapshotId("suite", 10_000), SnapshotId("suite", 20_000)]


def test_a_suite_of_subfolders_is_fetched_folder_by_folder(
    hub: Any, packed: Callable, tokenizer_files: dict[str, bytes], tmp_path: Path
) -> None:
    files = dict(tokenizer_files)
    for billions in (1, 2):
        files |= {f"hf_ckpt/{billions}.5B/{name}": body for name, body in packed(billions).items()}
    hub.add("lab/folders", "main", files)
    source = HubSubfolders(
        repo="lab/folders",
        endpoint=hub.endpoint,
        cache_dir=tmp_path / "cache",
        naming=Naming(tokens_per_step=500_000_000),
        loading=CPU,
        disk_budget_gb=50e-6,
    )
    assert source.ids() == [SnapshotId("folders", 3, 1_500_000_000), SnapshotId("folders", 5, 2_500_000_000)]
    assert [i.step for i in replace(source, select="^hf_ckpt/2").ids()] == [5]
    first, second = source.checkpoints()
    with source.open(first.id) as snapshot:
        assert torch.equal(logits(snapshot.model), logits(small_model(1)))
    assert not source.is_cached(second)
    source.finish(first)
    with source.open(second.id) as snapshot:
        assert torch.equal(logits(snapshot.model), logits(small_model(2)))
    assert not source.is_cached(first)
