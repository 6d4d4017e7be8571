"""Fifty steps end in the losses that were committed: a silent change of the numerics between commits is seen.

    python tests/train/test_golden_losses.py        measures anew and writes golden_losses.json, for a change on purpose

Model, tokens and order are made from seeds; float32, one thread. Tolerance: relative 5e-5 (AdamW) and 1e-3 (Muon, which
orthogonalises in bfloat16), for rounding differs between processors and libraries: weights that differ by 1e-7 of
themselves move the losses by 1e-7 and 7e-5. The last test says what these tolerances still see.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from train.model.xglm import XGLMForCausalLM, build_config  # noqa: E402
from train.optim import OptimizerOptions, build_optimizer, build_scheduler  # noqa: E402

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 50
OPTIONS = {
    "adamw": OptimizerOptions(lr=1e-2, warmup_steps=10),
    "muon": OptimizerOptions(name="muon", schedule="wsd", lr=1e-2, warmup_steps=10),
}
TOLERANCE = {"adamw": 5e-5, "muon": 1e-3}


def losses(options: OptimizerOptions, device: str = "cpu", dropout: float = 0.1) -> list[float]:
    """Loss of every step on text with something to learn: each token is the one before plus one."""
    torch.set_num_threads(1)
    torch.manual_seed(11)
    config = build_config(
        vocab_size=128,
        d_model=32,
        num_layers=2,
        attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=32,
        dropout=dropout,
    )
    model = XGLMForCausalLM(config).train().to(device)
    optimizer = build_optimizer(model, options)
    scheduler = build_scheduler(optimizer, options, STEPS)
    generator = torch.Generator().manual_seed(12)
    found = []
    for _ in range(STEPS):
        tokens = 4 + (torch.randint(0, 120, (8, 1), generator=generator) + torch.arange(24)) % 120
        tokens = tokens.to(device)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("name", list(OPTIONS))
def test_fifty_steps_have_the_losses_that_were_committed(name: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    assert golden[-1] < 0.9 * golden[0]  # something was learned
    assert losses(OPTIONS[name]) == pytest.approx(golden, rel=TOLERANCE[name])


@pytest.mark.parametrize(
    ("name", "change"),
    [("adamw", {"betas": (0.9, 0.951)}), ("adamw", {"eps": 1e-7}), ("muon", {"weight_decay": 0.11})],
)
def test_small_changes_of_the_recipe_are_seen(name: str, change: dict) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    assert losses(replace(OPTIONS[name], **change)) != pytest.approx(golden, rel=TOLERANCE[name])


if __name__ == "__main__":
    found = {name: losses(options) for name, options in OPTIONS.items()}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
