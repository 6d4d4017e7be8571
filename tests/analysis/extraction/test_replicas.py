"""Copies of a model: same results from shared texts, errors that come through, no doubled memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from analysis.checkpoints.loading import Loading
from analysis.checkpoints.local import LocalFolder
from analysis.extraction.encoding import Batch, encode_texts, iter_batches
from analysis.extraction.losses import text_losses
from analysis.extraction.options import Extraction
from analysis.extraction.replicas import deal_batches, replicate
from analysis.extraction.responses import iter_responses
from analysis.extraction.sites import find_sites
from analysis.extraction.states import iter_sentence_states
from analysis.snapshots import Snapshot

TEXTS = [f"a sentence with the number {number} and {'more ' * (number % 7)}words" for number in range(40)]


def test_a_copy_has_its_own_hooks_and_the_same_output(tiny_xglm: PreTrainedModel) -> None:
    twin = replicate(tiny_xglm, "cpu")
    heard: list[str] = []
    handle = twin.model.layers[0].register_forward_hook(lambda *_: heard.append("twin"))
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(tiny_xglm(ids).logits, twin(ids).logits)
    handle.remove()
    assert heard == ["twin"]
    own, other = (dict(model.named_parameters()) for model in (tiny_xglm, twin))
    assert own.keys() == other.keys()
    assert all(own[name].data_ptr() == other[name].data_ptr() for name in own)  # the same device, the same memory
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight  # still tied


def test_every_batch_goes_to_one_model_and_all_models_work(byte_tokenizer: object, tiny_xglm: PreTrainedModel) -> None:
    encoded = encode_texts(byte_tokenizer, TEXTS)  # type: ignore[arg-type]
    twin = replicate(tiny_xglm, "cpu")
    seen: list[int] = []
    workers = set()
    both = threading.Barrier(2, timeout=20)

    def run(model: PreTrainedModel, batch: Batch) -> None:
        if model not in workers:
            workers.add(model)
            both.wait()  # passes only if the other model takes a batch at the same time
        seen.extend(batch.indices.tolist())

    deal_batches([tiny_xglm, twin], iter_batches(encoded, 200, 1), run)
    assert workers == {tiny_xglm, twin}
    assert sorted(seen) == list(range(len(TEXTS)))


def test_an_error_in_one_thread_ends_all(byte_tokenizer: object, tiny_xglm: PreTrainedModel) -> None:
    encoded = encode_texts(byte_tokenizer, TEXTS)  # type: ignore[arg-type]
    calls: list[int] = []

    def run(model: PreTrainedModel, batch: Batch) -> None:
        calls.append(1)
        raise ValueError("the weights are broken")

    with pytest.raises(ValueError, match="the weights are broken"):
        deal_batches([tiny_xglm, replicate(tiny_xglm, "cpu")], iter_batches(encoded, 60, 1), run)
    assert len(calls) <= 2


@pytest.mark.parametrize("which", ["tiny_xglm", "tiny_bloom"])
def test_measures_are_the_same_with_copies(
    which: str, request: pytest.FixtureRequest, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    alone = tiny_snapshot(request.getfixturevalue(which))
    shared = replace(alone, replicas=(replicate(alone.model, "cpu"), replicate(alone.model, "cpu")), shared={})
    sites = find_sites(alone.model, "linear")
    pairs = zip(
        iter_responses(alone, TEXTS, sites, Extraction(batch_tokens=120)),
        iter_responses(shared, TEXTS, sites, Extraction(batch_tokens=120)),
        strict=True,
    )
    for one, other in pairs:
        assert one.site == other.site
        assert torch.equal(one.values, other.values)
    hidden = find_sites(alone.model, "hidden")
    for (_, one), (_, other) in zip(
        iter_sentence_states(alone, TEXTS, hidden, Extraction(pool="mean", batch_tokens=120)),
        iter_sentence_states(shared, TEXTS, hidden, Extraction(pool="mean", batch_tokens=120)),
        strict=True,
    ):
        assert torch.equal(one, other)
    tokens = alone.tokenizer(TEXTS)["input_ids"]
    losses = [
        text_losses(snapshot.models, snapshot.tokenizer, tokens, max_length=32, batch_tokens=100)
        for snapshot in (alone, shared)
    ]
    assert (losses[0] == losses[1]).all()


def test_devices_exclude_device_and_device_map() -> None:
    assert Loading(devices=["cpu", "cpu"]).chosen_devices == (torch.device("cpu"), torch.device("cpu"))
    for other in ({"device": "cpu"}, {"device_map": "auto"}):
        with pytest.raises(ValueError, match="name one of the three"):
            Loading(devices=["cpu", "cpu"], **other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device 'gpu7'"):
        Loading(devices=["gpu7"])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="this machine has 0 GPUs"):
            _ = Loading(devices=["cpu", "cuda:1"]).chosen_devices


def test_a_source_opens_one_copy_for_every_further_device(
    tmp_path: Path, tiny_bloom: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_bloom.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    source = LocalFolder(path=tmp_path, loading=Loading(devices=["cpu", "cpu", "cpu"], check_tokenizer=False))
    (snapshot_id,) = source.ids()
    with source.open(snapshot_id) as snapshot:
        assert len(snapshot.models) == 3
        assert len({id(model) for model in snapshot.models}) == 3
        sites = find_sites(snapshot.model, "linear")
        shared = [part.values for part in iter_responses(snapshot, TEXTS, sites)]
        alone = [part.values for part in iter_responses(replace(snapshot, replicas=()), TEXTS, sites)]
    assert all(torch.equal(one, other) for one, other in zip(shared, alone, strict=True))
