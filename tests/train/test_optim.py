"""Parameter groups, the fused kernel's update, and the learning rate against its formula."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from train.optim import (
    OptimizerOptions,
    block_matrices,
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


MUON = OptimizerOptions(name="muon", lr=0.1, weight_decay=0.0)


def with_gradients(model: nn.Module, seed: int = 5) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else(tiny_xglm: PreTrainedModel) -> None:
    names = {parameter: name for name, parameter in tiny_xglm.named_parameters()}
    taken = [names[parameter] for parameter in block_matrices(tiny_xglm)]
    projections = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2")
    assert sorted(taken) == sorted(f"model.layers.{i}.{name}.weight" for i in range(2) for name in projections)
    optimizer = build_optimizer(tiny_xglm, MUON)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len(names)
    assert set(grouped) == set(names)


def test_a_muon_update_is_near_orthogonal_and_as_large_as_one_of_adamw() -> None:
    """Singular values near 1 (torch's five steps leave them in 0.5 to 1.5) times 0.2 sqrt(max(m, n)) lr: RMS 0.2 lr."""
    for shape in ((24, 96), (96, 24), (48, 48)):
        model = nn.Linear(shape[1], shape[0])
        before = model.weight.detach().clone()
        build_optimizer(model, MUON)  # changes nothing by itself
        build_optimizer(with_gradients(model), MUON).step()
        update = (before - model.weight.detach()) / 0.1
        assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)
        values = torch.linalg.svdvals(update) / (0.2 * math.sqrt(max(shape)))
        # The smallest singular value of a square Gaussian matrix is near 0 and five steps do not lift it to 1.
        assert 0.4 < values[: -len(values) // 4].min() < values.max() < 1.6
        assert torch.trace(update.T @ model.weight.grad) > 0  # downhill


def test_all_but_the_matrices_moves_as_with_adamw_alone(tiny_xglm: PreTrainedModel) -> None:
    models = [deepcopy(tiny_xglm) for _ in range(2)]
    for model, name in zip(models, ("adamw", "muon"), strict=True):
        optimizer = build_optimizer(model, OptimizerOptions(name=name, lr=0.1))  # type: ignore[arg-type]
        for seed in range(3):
            with_gradients(model, seed)
            optimizer.step()
    matrices = set(block_matrices(models[1]))
    for (name, alone), (_, beside) in zip(*(model.named_parameters() for model in models), strict=True):
        assert torch.equal(alone, beside) is (beside not in matrices), name


def test_muon_decays_by_the_rule_of_adamw() -> None:
    """Liu et al. 2025, equation 4: w <- w (1 - lr x decay), the learning rate without the scale of the update."""
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(model, OptimizerOptions(name="muon", lr=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before * (1 - 0.5 * 0.1))


def test_muon_goes_on_from_its_saved_state_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4))
    optimizer = build_optimizer(with_gradients(model), MUON)
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state")
    build_optimizer(with_gradients(other := deepcopy(model), 9), MUON).step()
    resumed = build_optimizer(other, MUON)
    saved = torch.load(tmp_path / "state", weights_only=True)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for seed in (6, 7):
        for module, stepper in ((model, optimizer), (other, resumed)):
            with_gradients(module, seed)
            stepper.step()
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    ends = [one.state_dict() for one in (resumed, optimizer)]
    torch.testing.assert_close(ends[0]["state"], ends[1]["state"], rtol=0, atol=0)
    assert ends[0]["param_groups"] == ends[1]["param_groups"]


def test_muon_without_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="no matrix beside its embedding"):
        build_optimizer(nn.Embedding(4, 2), MUON)


@pytest.mark.parametrize("options", [OptimizerOptions(), MUON])
def test_parameters_without_gradient_keep_weights_and_moments(options: OptimizerOptions) -> None:
    """What a skipped step relies on: with all gradients dropped, the fused kernel changes nothing at all."""
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, options)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = deepcopy(optimizer.state_dict()["state"]), deepcopy(model.state_dict())
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    state, weights = optimizer.state_dict()["state"], model.state_dict()
    assert all(torch.equal(state[i][key], before[0][i][key]) for i in state for key in state[i])
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


def test_learning_rate_of_wsd_stays_at_its_peak_and_falls_at_the_end() -> None:
    options = OptimizerOptions(lr=2.0, warmup_steps=4, floor=0.1, schedule="wsd", decay_share=0.25)
    optimizer = build_optimizer(nn.Linear(2, 2), options)
    scheduler = build_scheduler(optimizer, options, max_steps=16)
    seen = []
    for _ in range(16):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen[:12] == pytest.approx([0.5, 1.0, 1.5] + 9 * [2.0])
    assert seen[12:] == pytest.approx([2.0 * (0.1 + 0.9 * (1 - math.sqrt(k / 4))) for k in range(1, 5)])
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
        ({"schedule": "wsd", "decay_share": 0.0}, "decay_share is 0.0"),
        ({"decay_share": 0.5}, "only the schedule wsd has one"),
    ],
)
def test_impossible_options_are_refused(options: dict, culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        OptimizerOptions(**options)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    options = OptimizerOptions(warmup_steps=100)
    with pytest.raises(ValueError, match="only 100 steps"):
        build_scheduler(build_optimizer(nn.Linear(2, 2), options), options, max_steps=100)
    options = OptimizerOptions(warmup_steps=90, schedule="wsd")
    with pytest.raises(ValueError, match=r"90 and its fall at the end takes 20 \(optimizer.decay_share 0.2\)"):
        build_scheduler(build_optimizer(nn.Linear(2, 2), options), options, max_steps=100)
