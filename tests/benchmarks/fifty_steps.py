"""Fifty steps of a tiny model, all made from seeds: what `tests/train/test_golden_losses.py` holds against the losses
that were committed, and `gpu_day.py` against a GPU.

    python tests/benchmarks/fifty_steps.py        measures anew and writes the committed losses, for a change on purpose
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from train.model.xglm import XGLMForCausalLM, build_config  # noqa: E402
from train.optim import OptimizerOptions, build_optimizer, build_scheduler  # noqa: E402

GOLDEN = ROOT / "tests" / "train" / "golden_losses.json"
STEPS = 50
OPTIONS = {
    "adamw": OptimizerOptions(lr=1e-2, warmup_steps=10),
    "muon": OptimizerOptions(name="muon", schedule="wsd", lr=1e-2, warmup_steps=10),
}


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


if __name__ == "__main__":
    found = {name: losses(options) for name, options in OPTIONS.items()}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
