"""One training step of the 257M model: transformers' XGLM against `train.model.xglm`, same weights, same text, same
run.

    python tests/benchmarks/bench_train_step.py [--quick] [--device cpu|cuda]

Speed: both models share their parameters in one process; forward and backward at 1 x 1024 tokens in bfloat16 autocast
take turns, and medians are compared. On a CPU one thread and its CPU time are counted, so that other load on the
machine hardly enters. Memory: each model in a process of its own; peak of the step above weights and gradients. The
optimizer step is the same for both; it is taken for real, and timed apart. Short blocks: the demo's model at 12 x 128
tokens, with attention in bfloat16 (baseline) and in float32 (ours), likewise in turns.

`make bench` collects `run`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import transformers  # noqa: E402

from tests.benchmarks.rows import computes_bf16, row  # noqa: E402
from train.flops import flops_per_token, peak_flops  # noqa: E402
from train.model import attention  # noqa: E402
from train.model.xglm import XGLMForCausalLM, build_config  # noqa: E402

LENGTH = 1024
MODELS = ("transformers", "ours")


def build(name: str, device: str) -> torch.nn.Module:
    """The 257M model in training mode, dropout off, float32 weights."""
    torch.manual_seed(0)
    kind = {"transformers": transformers.XGLMForCausalLM, "ours": XGLMForCausalLM}[name]
    with torch.device(device):
        return kind(build_config(dropout=0.0)).train()


def tokens(batch: int, device: str) -> torch.Tensor:
    """Random token ids (B, T)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 256_008, (batch, LENGTH), generator=generator).to(device)


def autocast(device: str) -> torch.autocast:
    """bfloat16 where the machine computes in it, else float32."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu" or computes_bf16())


def forward_backward(model: torch.nn.Module, ids: torch.Tensor) -> float:
    with autocast(ids.device.type):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return float(loss.detach())


def seconds(device: str) -> float:
    """CPU seconds of this process, or wall-clock seconds with the GPU's queue empty."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure_speed(device: str, rounds: int, batch: int) -> dict[str, Any]:
    """Median seconds of forward and backward of both models in turns, their losses, and a real optimizer step."""
    models = {name: build(name, device) for name in MODELS}
    models["ours"].load_state_dict(models["transformers"].state_dict(), assign=True)
    for parameter in models["ours"].parameters():
        parameter.requires_grad_(True)
    models["ours"].tie_weights()
    ids = tokens(batch, device)
    times: dict[str, list[float]] = {name: [] for name in MODELS}
    losses: dict[str, float] = {}
    for round_ in range(rounds + 1):
        for name, model in models.items():
            started = seconds(device)
            losses[name] = forward_backward(model, ids)
            elapsed = seconds(device) - started
            model.zero_grad(set_to_none=True)
            gc.collect()
            if round_:  # the first round warms up
                times[name].append(elapsed)
    result: dict[str, Any] = {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "losses": losses,
        "tokens": batch * LENGTH,
    }
    model = models.pop("ours")
    models.clear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    forward_backward(model, ids)
    optimizer.step()  # makes its state
    optimizer.zero_grad()
    forward_backward(model, ids)
    started = seconds(device)
    optimizer.step()
    result["optimizer_seconds"] = seconds(device) - started
    optimizer.zero_grad()
    with torch.no_grad(), autocast(device):
        result["loss_after_steps"] = float(model(input_ids=ids, labels=ids).loss)
    return result


def measure_memory(name: str, device: str, batch: int) -> dict[str, float]:
    """Peak GB of forward and backward above weights and gradients."""
    model = build(name, device)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter).add_(0.0)  # written to, so that it is resident
    ids = tokens(batch, device)
    if device == "cpu":
        import resource

        import psutil

        before = psutil.Process().memory_info().rss
        forward_backward(model, ids)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_backward(model, ids)
        peak = torch.cuda.max_memory_allocated()
    return {"before_gb": before / 1e9, "extra_gb": (peak - before) / 1e9}


def measure_short_blocks(rounds: int) -> dict[str, Any]:
    """Median CPU seconds of forward and backward of the demo's model with attention in bfloat16 and in float32."""
    sizes = {"vocab_size": 8192, "d_model": 128, "num_layers": 8, "attention_heads": 4, "ffn_dim": 512}
    model = XGLMForCausalLM(build_config(**sizes, dropout=0.0)).train()
    ids = torch.randint(3, 8192, (12, 128), generator=torch.Generator().manual_seed(1))
    limits = {"bfloat16": 0, "float32": attention.FLOAT32_LENGTH}
    times: dict[str, list[float]] = {name: [] for name in limits}
    for round_ in range(rounds + 1):
        for name, limit in limits.items():
            attention.FLOAT32_LENGTH = limit
            started = seconds("cpu")
            for _ in range(4):
                forward_backward(model, ids)
            if round_:
                times[name].append((seconds("cpu") - started) / 4)
    return {"seconds": {name: statistics.median(values) for name, values in times.items()}, "tokens": ids.numel()}


def in_own_process(*arguments: str) -> dict[str, Any]:
    output = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    return json.loads(output.splitlines()[-1])


def run(quick: bool, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows ``name, baseline, ours, ratio, unit, note``; a ratio above 1 is in our favour."""
    rounds = 1 if quick else 3
    speed = in_own_process("--speed", str(rounds), "--device", device)
    baseline, ours = (speed["tokens"] / speed["seconds"][name] for name in MODELS)
    kind = "bf16" if device != "cpu" or computes_bf16() else "fp32"
    note = f"257M, {kind}, 1x{LENGTH}, forward + backward, " + (
        "1 thread, CPU time" if device == "cpu" else "wall clock"
    )
    note += f"; losses {speed['losses']['transformers']:.4f} and {speed['losses']['ours']:.4f}"
    peak = peak_flops(torch.device(device), torch.bfloat16)
    if peak is not None:
        note += f"; MFU {100 * ours * flops_per_token(build_config(), LENGTH) / peak:.1f} %"
    rows = [row("train step, speed", baseline, ours, "tokens/s", note)]
    whole = [speed["tokens"] / (speed["seconds"][name] + speed["optimizer_seconds"]) for name in MODELS]
    note = (
        f"the same with one fused AdamW step of {speed['optimizer_seconds']:.2f} s after it; "
        f"two real steps take the loss from {speed['losses']['ours']:.2f} to {speed['loss_after_steps']:.2f}"
    )
    rows.append(row("train step with optimizer", *whole, "tokens/s", note))
    for batch in (1,) if quick else (1, 2):
        extra = [in_own_process("--memory", name, "--batch", str(batch), "--device", device) for name in MODELS]
        baseline, ours = (result["extra_gb"] for result in extra)
        note = f"peak above weights and gradients, {batch}x{LENGTH} tokens"
        rows.append(row(f"train step, memory {batch}x{LENGTH}", baseline, ours, "GB", note))
    if device == "cpu" and computes_bf16():
        short = in_own_process("--short", "5" if quick else "15")
        baseline, ours = (short["tokens"] / elapsed for elapsed in short["seconds"].values())
        note = "demo's model, 12x128, forward + backward, 1 thread, CPU time; attention in bf16 and in float32"
        rows.append(row("train step, short blocks", baseline, ours, "tokens/s", note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="One training step: transformers' XGLM against train.model.xglm")
    parser.add_argument("--quick", action="store_true", help="one round, one memory size")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--speed", type=int, metavar="ROUNDS", help=argparse.SUPPRESS)
    parser.add_argument("--short", type=int, metavar="ROUNDS", help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    if options.speed is not None:
        print(json.dumps(measure_speed(options.device, options.speed, options.batch)))
    elif options.short is not None:
        print(json.dumps(measure_short_blocks(options.short)))
    elif options.memory is not None:
        print(json.dumps(measure_memory(options.memory, options.device, options.batch)))
    else:
        for row in run(options.quick, options.device):
            print(
                f"{row['name']:28} {row['baseline']:10.2f} {row['ours']:10.2f} {row['unit']:9} "
                f"{row['ratio']:6.2f}x  {row['note']}"
            )


if __name__ == "__main__":
    main()
