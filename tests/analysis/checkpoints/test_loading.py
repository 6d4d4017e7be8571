"""Loading is complete, safe and says which checkpoint is to blame."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from analysis.checkpoints.loading import (
    Loading,
    build_random,
    check_fit,
    load_lightning,
    load_model,
    load_tokenizer,
    read_config,
)
from analysis.checkpoints.options import release

NAME = "suite step 3 (branch)"
CPU = Loading(device="cpu")


@pytest.fixture
def folder(tmp_path: Path, tiny_bloom: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    tiny_bloom.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[2, 70, 71, 72]])).logits


@pytest.mark.parametrize("kind", ["tiny_xglm", "tiny_bloom", "tiny_gpt2", "tiny_neox", "tiny_llama"])
def test_every_architecture_comes_back_with_the_same_logits(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    original = request.getfixturevalue(kind)
    original.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, NAME, CPU)
    torch.testing.assert_close(logits(loaded), logits(original), rtol=0, atol=0)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_pickled_shards_load_like_safetensors(folder: Path, tmp_path: Path, tiny_bloom: PreTrainedModel) -> None:
    (folder / "model.safetensors").unlink()
    state = {key.removeprefix("transformer."): value for key, value in tiny_bloom.state_dict().items()}
    state.pop("lm_head.weight")
    names = sorted(state)
    files = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, keys in files.items():
        torch.save({key: state[key] for key in keys}, folder / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in files.items() for key in keys}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.testing.assert_close(logits(load_model(folder, NAME, CPU)), logits(tiny_bloom), rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("stored", torch.float16)])
def test_precision_is_an_option(folder: Path, tiny_bloom: PreTrainedModel, dtype: str, expected: torch.dtype) -> None:
    deepcopy(tiny_bloom).half().save_pretrained(folder)
    model = load_model(folder, NAME, Loading(dtype=dtype, device="cpu"))  # type: ignore[arg-type]
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


PLACES: dict[str, int | str] = {
    "transformer.word_embeddings": "cpu",
    "transformer.word_embeddings_layernorm": "cpu",
    "transformer.h.0": "cpu",
    "transformer.h.1": "disk",
    "transformer.ln_f": "cpu",
    "lm_head": "cpu",
}


def test_weights_offloaded_to_disk_give_the_same_logits(
    folder: Path, tmp_path: Path, tiny_bloom: PreTrainedModel
) -> None:
    model = load_model(folder, NAME, Loading(device_map=PLACES, offload_folder=tmp_path / "offload"))
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    torch.testing.assert_close(logits(model), logits(tiny_bloom))


def test_a_wrong_architecture_in_the_config_is_overridden(folder: Path, tiny_bloom: PreTrainedModel) -> None:
    edit_config(folder, architectures=["BloomForSequenceClassification"], model_type="broken")
    with pytest.raises(ValueError, match=r"suite step 3 \(branch\): config.json is of no use"):
        load_model(folder, NAME, CPU)
    model = load_model(folder, NAME, Loading(device="cpu", architecture="BloomForCausalLM"))
    torch.testing.assert_close(logits(model), logits(tiny_bloom), rtol=0, atol=0)


def test_parameters_that_the_file_lacks_are_an_error(folder: Path) -> None:
    edit_config(folder, n_layer=3)
    with pytest.raises(ValueError, match=r"suite step 3 \(branch\): the weights lack 12 parameters.*h\.2\."):
        load_model(folder, NAME, CPU)


def test_a_config_of_another_size_is_an_error(folder: Path) -> None:
    edit_config(folder, hidden_size=64)
    with pytest.raises(ValueError, match=r"suite step 3 \(branch\): "):
        load_model(folder, NAME, CPU)


def test_a_repository_that_asks_for_its_own_code_is_refused(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "modeling_own.py").write_text(f"open({str(canary)!r}, 'w')\nclass Own: pass\n")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "modeling_own.Own"})
    with pytest.raises(ValueError, match=r"suite step 3 \(branch\): asks to run code from its repository"):
        load_model(folder, NAME, CPU)
    assert (
        type(load_model(folder, NAME, Loading(device="cpu", architecture="BloomForCausalLM"))).__name__
        == "BloomForCausalLM"
    )
    assert not canary.exists()


def test_tensor_parallel_replay_that_bypasses_hooks_is_switched_off(folder: Path) -> None:
    edit_config(folder, pretraining_tp=2, slow_but_exact=True)
    assert read_config(folder, NAME, CPU).slow_but_exact is False


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "unheard-of"}'])
def test_a_damaged_config_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"suite step 3 \(branch\): config.json is"):
        load_model(folder, NAME, CPU)


def test_the_random_network_depends_on_its_seed_alone(folder: Path) -> None:
    one, same, other = (build_random(folder, NAME, CPU, seed=seed) for seed in (1, 1, 2))
    before = torch.random.get_rng_state()
    build_random(folder, NAME, CPU, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(logits(one), logits(same))
    assert not torch.equal(logits(one), logits(other))


@pytest.mark.parametrize("device_map", ["auto", "cpu", PLACES])
def test_weights_that_were_not_read_are_spread_and_rounded_like_those_that_were(
    device_map: str | dict, folder: Path, tmp_path: Path
) -> None:
    """The random baseline, and Lightning files."""
    spread = Loading(device_map=device_map, offload_folder=tmp_path / "offload", dtype="bfloat16")
    model, plain = (build_random(folder, NAME, one, seed=1) for one in (spread, replace(CPU, dtype="bfloat16")))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert any(parameter.device.type == "meta" for parameter in model.parameters()) == (device_map is PLACES)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=0)
    drawn = build_random(folder, NAME, CPU, seed=2)
    state = {f"model.{key}": value for key, value in drawn.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    read = load_lightning(tmp_path / "a.ckpt", folder, NAME, spread)
    assert {parameter.dtype for parameter in read.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(read), logits(drawn.bfloat16()), rtol=0, atol=0)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=0)
    if device_map is PLACES:
        with pytest.raises(ValueError, match="puts weights on disk; set offload_folder"):
            build_random(folder, NAME, replace(spread, offload_folder=None), seed=1)
    del model, read
    release()
    assert not list(tmp_path.glob("offload/*"))


def test_a_prefix_token_goes_before_every_text(folder: Path) -> None:
    plain = load_tokenizer(folder, NAME)
    prefixed = load_tokenizer(folder, NAME, prefix_token="<s>")
    assert plain("ab")["input_ids"][0] == plain.eos_token_id
    assert prefixed("ab")["input_ids"] == [prefixed.bos_token_id, *plain("ab")["input_ids"][1:]]
    with pytest.raises(ValueError, match=r"prefix_token '<end>' is not in the vocabulary"):
        load_tokenizer(folder, NAME, prefix_token="<end>")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"suite step 3 \(branch\): no usable tokenizer"):
        load_tokenizer(tmp_path, NAME)


def test_a_tokenizer_with_unusable_settings_is_read_from_its_serialisation(
    folder: Path, byte_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"additional_special_tokens": [{"id": 1}], "eos_token": {"content": "</s>"}}))
    tokenizer = load_tokenizer(folder, NAME)
    assert "tokenizer.json is used as it is" in caplog.text
    assert tokenizer("a b").input_ids == byte_tokenizer("a b").input_ids
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<pad>")


def test_a_tokenizer_that_does_not_fit_is_refused(
    tiny_bloom: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    small = build_small(128)
    with pytest.raises(
        ValueError, match=r"suite step 3 \(branch\): the tokenizer has ids up to 259 but the model only 128"
    ):
        check_fit(small, byte_tokenizer, NAME, strict=False)
    with pytest.raises(ValueError, match="it looks like another model's tokenizer"):
        check_fit(tiny_bloom, byte_tokenizer, NAME, strict=True)
    check_fit(tiny_bloom, byte_tokenizer, NAME, strict=False)
    check_fit(build_small(264), byte_tokenizer, NAME, strict=True)


def build_small(vocabulary: int) -> PreTrainedModel:
    return BloomForCausalLM(BloomConfig(vocab_size=vocabulary, hidden_size=8, n_layer=1, n_head=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device 'gpu'"),
        ({"max_memory": {0: "1GB"}}, "need a device_map"),
    ],
)
def test_useless_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loading(**options)


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="loading.architecture 'BloomForEverything'"):
        load_model(folder, NAME, Loading(device="cpu", architecture="BloomForEverything"))
    with pytest.raises(ValueError, match="is not a transformers model class"):
        load_model(folder, NAME, Loading(device="cpu", architecture="pathlib.Path"))
