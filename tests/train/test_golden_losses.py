"""Fifty steps end in the losses that were committed: a silent change of the numerics between commits is seen.

Float32, one thread. Tolerance: relative 5e-5 (AdamW) and 1e-3 (Muon, which orthogonalises in bfloat16), for rounding
differs between processors and libraries: weights that differ by 1e-7 of themselves move the losses by 1e-7 and 7e-5.
The last test says what these tolerances still see.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.benchmarks.fifty_steps import GOLDEN, OPTIONS, losses

TOLERANCE = {"adamw": 5e-5, "muon": 1e-3}


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
