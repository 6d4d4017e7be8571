"""A row of the benchmark table, and the machine that it was measured on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def row(name: str, baseline: float | None, ours: float, unit: str, note: str) -> dict[str, Any]:
    """One measure: both sides of the same run, ratio above 1 in our favour; no ratio without a baseline.

    Of a rate (a unit that ends in `/s`) more is better, of seconds and bytes less.
    """
    ratio = None if baseline is None else ours / baseline if unit.endswith("/s") else baseline / ours
    return {"name": name, "baseline": baseline, "ours": ours, "ratio": ratio, "unit": unit, "note": note}


def machine() -> dict[str, Any]:
    """What every row is stamped with: processor, instruction set that torch uses, torch, threads."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "fast_bf16": computes_bf16(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def computes_bf16() -> bool:
    """Whether the processor computes in bfloat16; where it does not, bf16 is several times slower than float32."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
