"""Parameter groups, the fused kernel's update, and the learning rate against its formula."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from train.optim import (
    OptimizerOptions,
    build_optimizer,
    build_scheduler,
    learning_rate_factor,
    parameter_groups,
)


def names_by_decay(model: nn.Module, options: OptimizerOptions) -> dict[float, set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        group["weight_decay"]: {names[parameter] for parameter in group["params"]}  # type: ignore[union-attr]
        for group in parameter_groups(model, options)
    }


def test_biases_and_layer_norms_do_not_decay_and_every_parameter_is_in_one_group(tiny_xglm: PreTrainedModel) -> None:
    groups = names_by_decay(tiny_xglm, OptimizerOptions(weight_decay=0.1))
    everything = {name for name, _ in tiny_xglm.named_parameters()}
    assert groups[0.1] | groups[0.0] == everything
    assert not groups[0.1] & groups[0.0]
    assert all(name.endswith(".bias") or "layer_norm" in name for name in groups[0.0])
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.fc1.weight",
        "model.layers.1.self_attn.q_proj.weight",
    } <= groups[0.1]
    assert not any("layer_norm" in name for name in groups[0.1])


def test_embeddings_can_be_spared(tiny_xglm: PreTrainedModel) -> None:
    groups = names_by_decay(tiny_xglm, OptimizerOptions(decay_embeddings=False))
    assert "model.embed_tokens.weight" in groups[0.0]
    assert "model.layers.0.fc1.weight" in groups[0.1]


def test_frozen_parameters_are_left_out(tiny_xglm: PreTrainedModel) -> None:
    model = deepcopy(tiny_xglm)
    model.get_input_embeddings().weight.requires_grad = False
    grouped = {name for names in names_by_decay(model, OptimizerOptions()).values() for name in names}
    assert "model.embed_tokens.weight" not in grouped


def test_decay_shrinks_matrices_by_the_decoupled_rule_and_leaves_biases() -> None:
    """With a zero gradient AdamW's only change is w <- w (1 - lr x decay) (Loshchilov & Hutter 2019, algorithm 2)."""
    model = nn.Linear(3, 2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerOptions(lr=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before["weight"] * (1 - 0.5 * 0.1))
    assert torch.equal(model.bias.detach(), before["bias"])


def test_parameters_without_gradient_keep_weights_and_moments() -> None:
    """What a skipped step relies on: with all gradients dropped, the fused kernel changes nothing at all."""
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimizerOptions())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = deepcopy(optimizer.state_dict()["state"]), deepcopy(model.state_dict())
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    state, weights = optimizer.state_dict()["state"], model.state_dict()
    assert all(
        torch.equal(state[i][key], before[0][i][key]) for i in state for key in ("step", "exp_avg", "exp_avg_sq")
    )
    assert all(torch.equal(weights[name], before[1][name]) for name in weights)


def test_learning_rate_follows_warm_up_and_cosine() -> None:
    options = OptimizerOptions(lr=2.0, warmup_steps=4, floor=0.1)
    optimizer = build_optimizer(nn.Linear(2, 2), options)
    scheduler = build_scheduler(optimizer, options, max_steps=14)
    seen = []
    for _ in range(14):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    by_hand = [2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 10))) for k in range(1, 11)]
    assert seen[4:] == pytest.approx(by_hand)
    assert seen[-1] == pytest.approx(0.2)


def test_learning_rate_stays_at_the_floor_after_the_last_step() -> None:
    assert learning_rate_factor(500, warmup_steps=10, max_steps=100, floor=0.05) == pytest.approx(0.05)


def test_learning_rate_without_warm_up_starts_near_its_peak() -> None:
    assert learning_rate_factor(0, warmup_steps=0, max_steps=1000, floor=0.0) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"floor": 1.5}, "floor is 1.5"),
        ({"betas": (0.9, 1.0)}, r"betas is \[0.9, 1.0\]"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ],
)
def test_impossible_options_are_refused(options: dict, culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        OptimizerOptions(**options)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    options = OptimizerOptions(warmup_steps=100)
    with pytest.raises(ValueError, match="only 100 steps"):
        build_scheduler(build_optimizer(nn.Linear(2, 2), options), options, max_steps=100)
