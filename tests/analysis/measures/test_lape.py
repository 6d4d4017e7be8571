"""LAPE against the published code, planted language neurons, where they were planted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.extraction.options import Extraction
from analysis.extraction.sites import UnitSpace
from analysis.extraction.states import sample_tokens
from analysis.measures import build_analyses
from analysis.measures.lape import (
    Lape,
    activation_entropy,
    count_active_tokens,
    find_activations,
    find_language_neurons,
)
from analysis.snapshots import Snapshot
from analysis.texts import read_texts

ALPHABETS = {"aa": "abcdefgh", "bb": "KLMNOPQR", "cc": "stuvwxyz"}


@pytest.fixture
def texts(tmp_path: Path) -> str:
    generator = np.random.default_rng(0)
    path = tmp_path / "texts.jsonl"
    with path.open("w") as file:
        for language, alphabet in ALPHABETS.items():
            for number in range(30):
                text = "".join(generator.choice(list(alphabet), 8 + number % 7))
                file.write(json.dumps({"language": language, "uid": str(number), "split": "test", "text": text}) + "\n")
    return str(path)


def _lape(path: str, **options: object) -> Lape:
    return Lape(texts=path, **({"splits": ["test"], "tokens_per_language": 200, "share": 0.05} | options))  # type: ignore[arg-type]


def _one(rows: list[Row], metric: str, layer: int | None = None, language: str | None = None) -> Row:
    (row,) = [row for row in rows if (row.metric, row.layer, row.language) == (metric, layer, language)]
    return row


def _published(probabilities: torch.Tensor, percentile: float, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The selection of identify.py in RUCAIBox/Language-Specific-Neurons, written for units in one axis."""
    over = probabilities.T  # (A, L)
    normalised = over / over.sum(dim=-1, keepdim=True)
    logs = torch.where(normalised > 0, normalised.log(), 0)
    entropy = -torch.sum(normalised * logs, dim=-1)
    bar = over.flatten().quantile(percentile / 100)
    entropy[(over > bar).sum(dim=-1) == 0] = torch.inf
    _, index = entropy.topk(round(share * len(entropy)), largest=False)
    chosen = torch.zeros_like(over, dtype=torch.bool)
    chosen[index] = over[index] > bar
    return entropy, chosen.T


def test_selection_is_that_of_the_published_code() -> None:
    probabilities = torch.rand(4, 500, dtype=torch.float64) ** 3
    entropy, chosen = _published(probabilities, 90, 0.04)
    ours = find_language_neurons(probabilities.numpy(), 90, 0.04)
    assert np.allclose(ours.entropy, entropy.numpy())
    assert np.array_equal(ours.chosen, chosen.numpy())
    assert ours.chosen.any(axis=0).sum() == 20


def test_entropy_of_known_distributions() -> None:
    probabilities = np.array([[0.3, 0.8, 0.0], [0.3, 0.0, 0.0], [0.3, 0.0, 0.0]])
    assert np.allclose(activation_entropy(probabilities), [np.log(3), 0.0, np.log(3)])


@pytest.mark.parametrize("name", ["tiny_xglm", "tiny_llama"])
def test_counts_are_those_of_a_loop(
    name: str, texts: str, request: pytest.FixtureRequest, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    model = request.getfixturevalue(name)
    snapshot = tiny_snapshot(model)
    sample = sample_tokens(snapshot, read_texts(texts), 100, tokens_per_text=50)
    space = UnitSpace(find_activations(model))
    counts, lengths, owner = count_active_tokens(snapshot, sample, space, Extraction(batch_tokens=60))
    by_language = np.bincount(owner, lengths)
    assert ((by_language >= 100) & (by_language < 115)).all()  # whole texts of at most 14 letters
    nonlinear = {"tiny_xglm": "model.layers.{}.activation_fn", "tiny_llama": "model.layers.{}.mlp.act_fn"}[name]
    for text in (0, len(counts) // 2, len(counts) - 1):
        seen: list[torch.Tensor] = []

        def keep(_: torch.nn.Module, __: tuple, output: torch.Tensor, seen: list = seen) -> None:
            seen.append(output[0])

        handles = [model.get_submodule(nonlinear.format(layer)).register_forward_hook(keep) for layer in (0, 1)]
        with torch.no_grad():
            model(input_ids=torch.tensor([sample.encoded.ids[text]]))
        for handle in handles:
            handle.remove()
        expected = torch.cat([(values[1:] > 0).sum(0) for values in seen])  # without the leading </s>
        assert np.array_equal(counts[text], expected.numpy())


def _with_language_units(model: PreTrainedModel) -> PreTrainedModel:
    """Units 0, 1, 2 of the first MLP fire on the letters of aa, bb, cc and on nothing else."""
    planted = copy.deepcopy(model)
    from tokenizers import pre_tokenizers

    ids = {character: 4 + index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    block = planted.model.layers[0]
    with torch.no_grad():
        planted.model.embed_tokens.weight.mul_(0.01)
        planted.model.embed_tokens.weight[2] = 0.0  # the leading </s> would be normalised to full size
        for unit, alphabet in enumerate(ALPHABETS.values()):
            for character in alphabet:
                planted.model.embed_tokens.weight[ids[character], unit] = 10.0
            block.mlp.gate_proj.weight[unit] = 0.0
            block.mlp.gate_proj.weight[unit, unit] = 1.0
            block.mlp.up_proj.weight[unit] = 0.0
            block.mlp.up_proj.weight[unit, unit] = 1.0
        for unit in range(3):
            # The other languages push the gate below zero, and the value with it: the product would be above zero.
            block.mlp.up_proj.weight[unit, unit] = -1.0
            for other in range(3):
                if other != unit:
                    block.mlp.gate_proj.weight[unit, other] = -4.0
                    block.mlp.up_proj.weight[unit, other] = -1.0
        block.self_attn.o_proj.weight.zero_()
    return planted


def test_planted_language_neurons_are_found(texts: str, tiny_llama: PreTrainedModel, tiny_snapshot: Callable) -> None:
    model = _with_language_units(tiny_llama)
    snapshot = tiny_snapshot(model)
    sample = sample_tokens(snapshot, read_texts(texts), 150, tokens_per_text=50)
    space = UnitSpace(find_activations(model))
    counts, lengths, owner = count_active_tokens(snapshot, sample, space, Extraction(batch_tokens=512))
    probabilities = np.stack(
        [counts[owner == language].sum(0) / lengths[owner == language].sum() for language in range(3)]
    )
    assert np.allclose(probabilities[:, :3], np.eye(3))
    found = find_language_neurons(probabilities, 50, 0.05)
    assert np.array_equal(found.chosen[:, :3], np.eye(3, dtype=bool))
    rows = list(_lape(texts, percentile=50.0).measure(snapshot))
    entropy = _one(rows, "entropy", layer=0)
    assert entropy.value < entropy.chance
    assert entropy.p == pytest.approx(1 / 21)


def test_shuffled_languages_leave_no_preference(
    tmp_path: Path, texts: str, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    """All languages speak the same: the entropy is inside its null."""
    path = tmp_path / "same.jsonl"
    generator = np.random.default_rng(3)
    with path.open("w") as file:
        for language in ALPHABETS:
            for number in range(60):
                record = {"language": language, "uid": str(number), "split": "test"}
                file.write(json.dumps(record | {"text": "".join(generator.choice(list("abcdefgh"), 12))}) + "\n")
    same = _one(list(_lape(str(path)).measure(tiny_snapshot(tiny_xglm))), "entropy")
    different = _one(list(_lape(texts).measure(tiny_snapshot(tiny_xglm))), "entropy")
    assert same.p > 0.05
    assert different.p == pytest.approx(1 / 21)
    assert different.value < same.value


def test_rows_are_reproducible_and_shares_add_up(
    texts: str, tiny_bloom: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    rows = list(_lape(texts).measure(tiny_snapshot(tiny_bloom)))
    assert rows == list(_lape(texts).measure(tiny_snapshot(tiny_bloom)))
    assert {row.metric for row in rows} == {"entropy", "language_units"}
    shares = [_one(rows, "language_units", layer=layer) for layer in (0, 1)]
    assert sum(row.value for row in shares) == pytest.approx(1)
    assert sum(row.chance for row in shares) == pytest.approx(1)


def test_language_units_lie_where_they_were_planted(
    texts: str, tiny_llama: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    rows = list(_lape(texts, percentile=50.0, share=3 / 128).measure(tiny_snapshot(_with_language_units(tiny_llama))))
    assert _one(rows, "language_units", layer=0).value == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percentile": 100.0}, "percentile"),
        ({"share": 0.0}, "share"),
        ({"shuffles": 0}, "shuffles=0"),
        ({"languages": ["aa"]}, "one language"),
        ({"languages": ["aa", "zz"]}, "no language 'zz'"),
    ],
)
def test_bad_settings_are_named(
    options: dict[str, object], message: str, texts: str, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    with pytest.raises(ValueError, match=message):
        list(_lape(texts, **options).measure(tiny_snapshot(tiny_xglm)))


def test_silent_and_broken_networks(texts: str, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable) -> None:
    silent, broken = copy.deepcopy(tiny_xglm), copy.deepcopy(tiny_xglm)
    with torch.no_grad():
        for block in silent.model.layers:
            block.fc1.weight.zero_()
            block.fc1.bias.fill_(-1.0)
        broken.model.layers[1].fc1.bias[0] = torch.nan
    # An analysis without rows would count as failed and be measured again for ever.
    assert [(row.metric, row.value, row.layer) for row in list(_lape(texts).measure(tiny_snapshot(silent)))] == [
        ("language_units", 0.0, None)
    ]
    with pytest.raises(ValueError, match=r"layers\.1\.fc2 .*NaN"):
        list(_lape(texts).measure(tiny_snapshot(broken)))


def test_it_is_built_from_a_list_entry(texts: str) -> None:
    (analysis,) = build_analyses([{"class_path": "Lape", "init_args": {"texts": texts, "share": 0.05}}])
    assert analysis.name == "lape"
