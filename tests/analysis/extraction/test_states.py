"""Token and sentence states against transformers' own `output_hidden_states`."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.extraction.options import Extraction
from analysis.extraction.sites import find_sites
from analysis.extraction.states import iter_sentence_states, iter_token_states, sample_tokens
from analysis.snapshots import Snapshot
from analysis.texts import Text

MODELS = ["tiny_xglm", "tiny_bloom", "tiny_gpt2", "tiny_neox", "tiny_llama"]
TEXTS = {
    "de": [Text(f"k{i}", f"Satz {i} über {'Häuser ' * (i % 4)}und Wale.") for i in range(20)],
    "en": [Text(f"k{i}", f"Sentence {i} on {'houses ' * (i % 5)}and whales.") for i in range(20)],
}


def _reference_states(snapshot: Snapshot, text: str) -> tuple[Tensor, ...]:
    """`hidden_states` of one unpadded text, (T, D) each; the last entry still lacks the final norm of the model."""
    ids = torch.tensor([snapshot.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        output = snapshot.model(input_ids=ids, output_hidden_states=True)
    return tuple(states[0] for states in output.hidden_states)


def _final_norm(model: PreTrainedModel) -> torch.nn.Module:
    names = ("layer_norm", "ln_f", "final_layer_norm", "norm")
    return next(getattr(model.base_model, name) for name in names if hasattr(model.base_model, name))


@pytest.mark.parametrize("name", MODELS)
def test_token_states_are_the_hidden_states_of_transformers(
    name: str, request: pytest.FixtureRequest, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    model = request.getfixturevalue(name)
    snapshot = tiny_snapshot(model)
    sample = sample_tokens(snapshot, TEXTS, 60, tokens_per_text=8)
    sites = find_sites(model, "hidden")
    assert [site.layer for site in sites] == [-1, 0, 1]
    states = {
        site.layer: values for site, values in iter_token_states(snapshot, sample, sites, Extraction(batch_tokens=200))
    }
    whole = {entry.key + language: entry.text for language, entries in TEXTS.items() for entry in entries}
    for index in np.random.default_rng(0).choice(len(sample), 25, replace=False):
        key = sample.key_names[sample.key[index]] + sample.languages[sample.language[index]]
        reference = _reference_states(snapshot, whole[key])
        place = sample.position[index]
        for layer in (-1, 0):
            assert torch.allclose(states[layer][index], reference[layer + 1][place], atol=1e-5)
        assert torch.allclose(_final_norm(model)(states[1][index]), reference[2][place], atol=1e-5)


def test_sample_depends_on_seed_and_keys_only(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    first = sample_tokens(snapshot, TEXTS, 50, seed=3)
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    states = (random.getstate(), np.random.get_state()[2], torch.get_rng_state())
    shuffled = {language: list(reversed(entries)) for language, entries in TEXTS.items()}
    second = sample_tokens(snapshot, shuffled, 50, seed=3)
    assert random.getstate() == states[0]
    assert np.random.get_state()[2] == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    for name in ("position", "token", "language"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    other = sample_tokens(snapshot, TEXTS, 50, seed=4)
    assert not np.array_equal(first.position, other.position)


def test_sample_keeps_its_quota_and_takes_no_special_token(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable) -> None:
    sample = sample_tokens(tiny_snapshot(tiny_xglm), TEXTS, 45, tokens_per_text=10)
    assert np.bincount(sample.language).tolist() == [45, 45]
    assert sample.token.min() > 3
    assert np.unique(np.stack([sample.text, sample.position]), axis=1).shape[1] == len(sample)
    assert np.bincount(sample.text).max() <= 10
    plenty = sample_tokens(tiny_snapshot(tiny_xglm), TEXTS, 10**6, tokens_per_text=10**6)
    assert len(plenty) == sum(len(entry.text.encode()) for entries in TEXTS.values() for entry in entries)


def test_memory_bound_and_batching_do_not_change_states(tiny_bloom: PreTrainedModel, tiny_snapshot: Callable) -> None:
    snapshot = tiny_snapshot(tiny_bloom)
    sample = sample_tokens(snapshot, TEXTS, 40)
    sites = find_sites(tiny_bloom, "hidden")
    roomy = dict(iter_token_states(snapshot, sample, sites))
    tight = dict(iter_token_states(snapshot, sample, sites, Extraction(batch_tokens=1, max_bytes=len(sample) * 32 * 4)))
    assert list(roomy) == list(tight) == list(sites)
    for site in sites:
        assert torch.allclose(roomy[site], tight[site], atol=1e-5)
    with pytest.raises(ValueError, match="max_bytes"):
        list(iter_token_states(snapshot, sample, sites, Extraction(max_bytes=100)))


@pytest.mark.parametrize("pool", ["mean", "weighted", "last"])
def test_sentence_states_pool_content_tokens(pool: str, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    texts = [entry.text for entry in TEXTS["de"]]
    states = dict(
        iter_sentence_states(snapshot, texts, find_sites(tiny_xglm, "hidden"), Extraction(pool=pool, batch_tokens=150))
    )
    for site, values in states.items():
        if site.layer == 1:
            continue
        for index, text in enumerate(texts):
            content = _reference_states(snapshot, text)[site.layer + 1][1:]  # without the leading </s>
            rank = torch.arange(1, len(content) + 1)[:, None]
            expected = {"mean": content.mean(0), "weighted": (content * rank).sum(0) / rank.sum(), "last": content[-1]}
            assert torch.allclose(values[index], expected[pool], atol=1e-5)


def test_bad_input_is_named(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    sites = find_sites(tiny_xglm, "hidden")
    with pytest.raises(ValueError, match="no languages"):
        sample_tokens(snapshot, {}, 5)
    with pytest.raises(ValueError, match="'fr'"):
        sample_tokens(snapshot, {"fr": []}, 5)
    with pytest.raises(ValueError, match="pool='sum'"):
        list(iter_sentence_states(snapshot, ["a"], sites, Extraction(pool="sum")))


def test_broken_weights_are_named(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable) -> None:
    import copy

    broken = copy.deepcopy(tiny_xglm)
    with torch.no_grad():
        broken.model.layers[1].fc2.bias[0] = torch.nan
    snapshot = tiny_snapshot(broken)
    with pytest.raises(ValueError, match=r"layers\.1 .*NaN"):
        list(iter_sentence_states(snapshot, ["a house"], find_sites(broken, "hidden"), Extraction(pool="mean")))
