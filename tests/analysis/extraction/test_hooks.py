"""Hooks hear every site, change what they should, and are gone afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomForCausalLM, PreTrainedModel

from analysis.extraction.hooks import force_units, read_sites
from analysis.extraction.sites import Site, find_sites

MODELS = ["tiny_xglm", "tiny_bloom", "tiny_gpt2", "tiny_neox", "tiny_llama"]
IDS = torch.tensor([[2, 50, 60, 70, 80], [2, 90, 91, 92, 93]])


def num_hooks(model: nn.Module) -> int:
    """Ours alone: transformers 5 leaves hooks of its own behind once hidden states were asked for."""
    return sum(
        hook.__module__ == "analysis.extraction.hooks"
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )


def record(model: PreTrainedModel, sites: tuple[Site, ...]) -> dict[Site, Tensor]:
    heard: dict[Site, Tensor] = {}
    with torch.no_grad(), read_sites(model, sites, lambda site, values: heard.__setitem__(site, values.clone())):
        model(IDS)
    return heard


@pytest.mark.parametrize("name", MODELS)
def test_sites_are_heard_with_their_widths(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    for site_set in ("linear", "mlp_act", "hidden"):
        sites = find_sites(model, site_set)
        heard = record(model, sites)
        assert {site: values.shape for site, values in heard.items()} == {
            site: (2, 5, site.num_units) for site in sites
        }
    assert num_hooks(model) == 0


@pytest.mark.parametrize("name", MODELS)
def test_hidden_sites_are_the_hidden_states_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    heard = record(model, find_sites(model, "hidden"))
    with torch.no_grad():
        expected = model(IDS, output_hidden_states=True).hidden_states
    # The last entry of transformers is behind the final norm, ours is before it.
    for ours, theirs in zip(list(heard.values())[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_activation_site_is_what_the_nonlinearity_gives(
    tiny_xglm: PreTrainedModel, tiny_llama: PreTrainedModel
) -> None:
    heard = record(tiny_xglm, find_sites(tiny_xglm, ["mlp.in", "mlp.act"]))
    before, after = list(heard.values())[:2]
    torch.testing.assert_close(after, nn.functional.gelu(before))
    heard = record(tiny_llama, find_sites(tiny_llama, ["mlp.gate", "mlp.in", "mlp.act"]))
    gate, value, product = list(heard.values())[:3]
    torch.testing.assert_close(product, nn.functional.silu(gate) * value)


def test_hooks_are_gone_after_an_error(tiny_xglm: PreTrainedModel) -> None:
    def fail(site: Site, values: Tensor) -> None:
        assert num_hooks(tiny_xglm) == len(find_sites(tiny_xglm))
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"), read_sites(tiny_xglm, find_sites(tiny_xglm), fail):
        tiny_xglm(IDS)
    assert num_hooks(tiny_xglm) == 0
    site = find_sites(tiny_xglm)[0]
    with (
        pytest.raises(RuntimeError, match="outside"),
        force_units(tiny_xglm, {site: (torch.tensor([0]), torch.tensor([1.0]))}, positions="new", prompt_length=1),
    ):
        raise RuntimeError("outside")
    assert num_hooks(tiny_xglm) == 0


def test_unheard_site_is_an_error(tiny_xglm: PreTrainedModel, tiny_bloom: PreTrainedModel) -> None:
    with (
        pytest.raises(ValueError, match=r"never reached.*'model\.layers\.0\.fc1'"),
        read_sites(tiny_xglm, find_sites(tiny_xglm, ["mlp.in"]), lambda site, values: None),
    ):
        pass
    bypassing = copy.deepcopy(tiny_bloom)
    assert isinstance(bypassing, BloomForCausalLM)
    for block in bypassing.transformer.h:
        block.mlp.pretraining_tp, block.mlp.slow_but_exact = 2, True
    with (
        pytest.raises(ValueError, match="pretraining_tp=1"),
        torch.no_grad(),
        read_sites(bypassing, find_sites(bypassing), lambda site, values: None),
    ):
        bypassing(IDS)
    assert num_hooks(tiny_xglm) == num_hooks(bypassing) == 0


def test_site_without_module_is_an_error(tiny_xglm: PreTrainedModel) -> None:
    absent = Site(9, "resid", "model.layers.9", 32)
    with (
        pytest.raises(ValueError, match=r"no module 'model\.layers\.9'"),
        read_sites(tiny_xglm, [absent], lambda site, values: None),
    ):
        pass


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["mlp.in", "mlp.act", "mlp.out", "resid", "embed"])
def test_forced_units_have_their_value_and_only_they(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    site = find_sites(model, [kind])[0]
    plain = record(model, (site,))[site]
    units, values = torch.tensor([1, 5]), torch.tensor([3.0, -2.0])
    with force_units(model, {site: (units, values)}):
        forced = record(model, (site,))[site]
    expected = plain.clone()
    expected[..., units] = values
    assert torch.equal(forced, expected)
    assert num_hooks(model) == 0


@pytest.mark.parametrize("name", MODELS)
def test_model_is_bit_identical_afterwards_and_under_empty_forcing(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    site = find_sites(model, ["mlp.in"])[0]
    with torch.no_grad():
        before = model(IDS).logits
        with force_units(model, {site: (torch.tensor([3]), torch.tensor([9.0]))}):
            during = model(IDS).logits
        with force_units(model, {site: (torch.tensor([], dtype=torch.int64), torch.tensor([]))}):
            empty = model(IDS).logits
        after = model(IDS).logits
    assert not torch.equal(before, during)
    assert torch.equal(before, empty)
    assert torch.equal(before, after)


def test_values_may_differ_by_text_and_units_by_row(tiny_xglm: PreTrainedModel) -> None:
    site = find_sites(tiny_xglm, ["mlp.in"])[0]
    plain = record(tiny_xglm, (site,))[site]
    units = torch.tensor([0, 4])
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with force_units(tiny_xglm, {site: (units, values)}):
        forced = record(tiny_xglm, (site,))[site]
    assert torch.equal(forced[:, :, units], values[:, None].expand(2, 5, 2))
    with force_units(tiny_xglm, {site: (torch.tensor([7, 8]), torch.tensor([5.0, 6.0]), torch.tensor([1, 0]))}):
        forced = record(tiny_xglm, (site,))[site]
    expected = plain.clone()
    expected[1, :, 7], expected[0, :, 8] = 5.0, 6.0
    assert torch.equal(forced, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("positions", ["all", "new"])
@pytest.mark.parametrize("prompt_length", [1, 4])
def test_forced_generation_is_the_same_with_and_without_cache(
    name: str, positions: str, prompt_length: int, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    site = find_sites(model, ["mlp.out"])[-1]
    forcing = {site: (torch.arange(8), torch.full((8,), 4.0))}
    prompt = IDS[:, :prompt_length]
    texts = []
    for use_cache in (True, False):
        with force_units(model, forcing, positions=positions, prompt_length=prompt_length):
            texts.append(model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=use_cache, pad_token_id=1))
    assert torch.equal(texts[0], texts[1])


def test_new_positions_leave_the_prompt_alone(tiny_xglm: PreTrainedModel) -> None:
    site = find_sites(tiny_xglm, ["mlp.in"])[0]
    plain = record(tiny_xglm, (site,))[site]
    with force_units(tiny_xglm, {site: (torch.tensor([2]), torch.tensor([7.0]))}, positions="new", prompt_length=3):
        forced = record(tiny_xglm, (site,))[site]
    assert torch.equal(forced[:, :3], plain[:, :3])
    assert bool((forced[:, 3:, 2] == 7.0).all())


def test_gradient_flows_around_forced_units(tiny_xglm: PreTrainedModel) -> None:
    model = copy.deepcopy(tiny_xglm)
    site = find_sites(model, ["mlp.in"])[0]
    with force_units(model, {site: (torch.tensor([2]), torch.tensor([7.0]))}):
        model(IDS, labels=IDS).loss.backward()
    gradient = model.get_submodule(site.module).weight.grad
    assert bool((gradient[2] == 0).all())
    assert gradient[3].abs().sum() > 0


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ((torch.tensor([64]), torch.tensor([1.0])), "below 64"),
        ((torch.tensor([-1]), torch.tensor([1.0])), "below 64"),
        ((torch.tensor([0, 1]), torch.tensor([1.0])), "values of shape"),
        ((torch.tensor([0]), torch.tensor([float("nan")])), "not finite"),
        ((torch.tensor([0]), torch.tensor([1.0]), torch.tensor([0, 1])), "rows of shape"),
    ],
)
def test_malformed_forcing_is_refused(entry: tuple, match: str, tiny_xglm: PreTrainedModel) -> None:
    site = find_sites(tiny_xglm, ["mlp.in"])[0]
    with pytest.raises(ValueError, match=match), force_units(tiny_xglm, {site: entry}):
        pass
    with pytest.raises(ValueError, match="prompt_length"), force_units(tiny_xglm, {}, positions="new"):
        pass
