"""Pooling sees the tokens that count and no others."""

from __future__ import annotations

import pytest
import torch

from analysis.extraction.pooling import make_pooling

CONTIGUOUS = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
HOLES = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]).bool()


@pytest.mark.parametrize("content", [CONTIGUOUS, HOLES], ids=["contiguous", "holes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_equals_a_loop_over_texts(content: torch.Tensor, dtype: torch.dtype) -> None:
    activations = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    for how, reduce in (
        ("max", lambda tokens: tokens.amax(0)),
        ("mean", lambda tokens: tokens.mean(0)),
        ("last", lambda tokens: tokens[-1]),
    ):
        expected = torch.stack([reduce(row[kept].float()) for row, kept in zip(activations, content, strict=True)])
        pooled = make_pooling(how, content)(activations)
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("how", ["max", "mean", "last"])
@pytest.mark.parametrize("content", [CONTIGUOUS, HOLES], ids=["contiguous", "holes"])
def test_masked_positions_never_enter(how: str, content: torch.Tensor) -> None:
    activations = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    poisoned = activations.clone()
    poisoned[~content] = 1e9
    pooling = make_pooling(how, content)
    assert torch.equal(pooling(activations), pooling(poisoned))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="max, mean, last"):
        make_pooling("median", CONTIGUOUS)
    with pytest.raises(ValueError, match="no token that counts"):
        make_pooling("max", torch.tensor([[True], [False]]))
