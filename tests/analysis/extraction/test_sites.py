"""Sites are found by exact path, in every supported architecture, with the unit counts of the literature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    ApertusConfig,
    ApertusForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
)

from analysis.extraction.hooks import read_sites
from analysis.extraction.sites import Site, UnitSpace, body, find_sites, num_layers, unit_kinds

MODELS = ["tiny_xglm", "tiny_bloom", "tiny_gpt2", "tiny_neox", "tiny_llama"]


def meta(make: type, config: object) -> PreTrainedModel:
    with torch.device("meta"):
        return make(config)


@pytest.mark.parametrize(
    ("make", "config", "units"),
    [
        (
            XGLMForCausalLM,
            XGLMConfig(vocab_size=64, d_model=512, ffn_dim=4096, num_layers=24, attention_heads=16),
            159_744,
        ),
        (BloomForCausalLM, BloomConfig(vocab_size=64, hidden_size=1024, n_layer=24, n_head=16), 221_184),
        (BloomForCausalLM, BloomConfig(vocab_size=64, hidden_size=4096, n_layer=30, n_head=32), 1_105_920),
    ],
    ids=["xglm-257m", "bloom-560m", "bloom-7b1"],
)
def test_linear_units_are_counted_as_in_the_literature(make: type, config: object, units: int) -> None:
    assert UnitSpace(find_sites(meta(make, config))).num_units == units


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_has_every_set(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    modules = dict(model.named_modules())
    for site_set in ("linear", "mlp_act", "residual", "hidden"):
        sites = find_sites(model, site_set)
        assert [site.layer for site in sites] == sorted(site.layer for site in sites)
        assert all(site.module in modules for site in sites)
    assert len(find_sites(model, "residual")) == num_layers(model) == 2
    assert find_sites(model, "hidden")[0].layer == -1
    assert find_sites(model, ["mlp.out", "resid"])[1].kind == "resid"


@pytest.mark.parametrize("name", MODELS)
def test_body_alone_has_the_same_sites(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    whole = find_sites(model)
    alone = find_sites(body(model))
    assert [(site.layer, site.kind, site.num_units) for site in whole] == [
        (site.layer, site.kind, site.num_units) for site in alone
    ]
    assert all(site.module in dict(body(model).named_modules()) for site in alone)


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (MistralForCausalLM, MistralConfig),
        (Qwen2ForCausalLM, Qwen2Config),
        (Olmo2ForCausalLM, Olmo2Config),
        (ApertusForCausalLM, ApertusConfig),
    ],
)
def test_llama_like_blocks_are_accepted_by_structure(make: type, config: type) -> None:
    model = meta(
        make,
        config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
    )
    gates = 0 if make is ApertusForCausalLM else 48
    assert UnitSpace(find_sites(model)).num_units == 2 * (32 + 16 + 16 + 32 + gates + 48 + 32)


def test_unknown_architecture_shows_how_to_add_a_table() -> None:
    config = OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
    )
    with pytest.raises(ValueError, match=r"'opt'.*ARCHITECTURES in analysis/extraction/sites\.py.*BlockNames"):
        find_sites(meta(OPTForCausalLM, config))


@pytest.mark.parametrize("wrong", ["mlp", "attention", ["resid", "mlp.middle"], []])
def test_unknown_kind_names_the_choices(wrong: str | list[str], tiny_xglm: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"unknown site kind.*linear, mlp_act, residual"):
        find_sites(tiny_xglm, wrong)


def test_kind_that_the_architecture_lacks_is_refused(tiny_xglm: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"has no attn\.qkv"):
        find_sites(tiny_xglm, ["mlp.in", "attn.qkv"])


def test_unit_space_numbers_units_in_site_order(tiny_xglm: PreTrainedModel) -> None:
    space = UnitSpace(find_sites(tiny_xglm))
    assert space.offsets[-1] == space.num_units
    assert np.array_equal(
        space.site_indices(np.arange(space.num_units)),
        np.repeat(np.arange(len(space.sites)), [site.num_units for site in space.sites]),
    )


def test_spaces_of_different_sites_are_unequal() -> None:
    one = Site(0, "resid", "model.layers.0", 8)
    assert UnitSpace((one,)) == UnitSpace((Site(0, "resid", "model.layers.0", 8),))
    assert UnitSpace((one,)) != UnitSpace((Site(0, "resid", "model.layers.0", 16),))


@pytest.mark.parametrize("name", ["tiny_bloom", "tiny_neox", "tiny_gpt2"])
def test_fused_qkv_is_told_apart_as_the_model_splits_it(name: str, request: pytest.FixtureRequest) -> None:
    """Only the units called `attn.v` may change the attention's output when keys and queries make no difference."""
    model = request.getfixturevalue(name)
    site = next(site for site in find_sites(model) if site.kind == "attn.qkv")
    kinds = unit_kinds(model, site)
    assert {kind: int((kinds == kind).sum()) for kind in np.unique(kinds)} == {"attn.k": 32, "attn.q": 32, "attn.v": 32}
    ids = torch.tensor([[7]])  # one token attends to itself alone, whatever query and key are
    module = model.get_submodule(site.module)
    attention = model.get_submodule(site.module.rpartition(".")[0])
    outputs: list[torch.Tensor] = []

    def shifted(kind: str | None) -> torch.Tensor:
        shift = torch.zeros(site.num_units)
        if kind is not None:
            shift[torch.from_numpy(kinds == kind)] = 1.0
        handles = [
            module.register_forward_hook(lambda _module, _args, output: output + shift),
            attention.register_forward_hook(lambda _module, _args, output: outputs.append(output[0].detach())),
        ]
        with torch.no_grad():
            model(ids)
        for handle in handles:
            handle.remove()
        return outputs.pop()

    plain = shifted(None)
    torch.testing.assert_close(shifted("attn.q"), plain)
    torch.testing.assert_close(shifted("attn.k"), plain)
    assert (shifted("attn.v") - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("glm4_moe", {}), ("ernie4_5_moe", {}), ("qwen3_moe", {"mlp_only_layers": [0]}), ("afmoe", {})],
)
def test_a_mixture_with_a_dense_block_is_never_measured_in_that_block_alone(
    model_type: str, options: dict[str, object], tiny_of: Callable[..., PreTrainedModel]
) -> None:
    model = tiny_of(model_type, **options)
    for site_set in ("linear", "mlp_act", ["mlp.in"]):
        with pytest.raises(
            ValueError, match=r"block 1 has no 'mlp\.\w+', other blocks have .*choose the site set"
        ) as told:
            find_sites(model, site_set)
        assert "\n" not in str(told.value)
    ids = torch.arange(3, 12)[None]
    states: dict[int, torch.Tensor] = {}
    sites = find_sites(model, "hidden")
    assert [site.layer for site in sites] == [-1, 0, 1, 2]
    with torch.no_grad(), read_sites(model, sites, lambda site, values: states.update({site.layer: values.clone()})):
        hidden = model(ids, output_hidden_states=True).hidden_states
    for layer in (-1, 0, 1):
        torch.testing.assert_close(states[layer], hidden[layer + 1])


def test_a_mixture_without_a_dense_block_is_read_by_states_and_attention(
    tiny_of: Callable[..., PreTrainedModel],
) -> None:
    model = tiny_of("mixtral")
    with pytest.raises(ValueError, match="blocks have no 'mlp"):
        find_sites(model)
    assert [site.kind for site in find_sites(model, ["attn.q", "resid"])] == ["attn.q", "resid"] * 3
