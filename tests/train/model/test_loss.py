"""The loss equals a float64 reference in every formulation, and never holds the logits of all tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.model import loss as loss_module
from train.model.loss import choose_backend, linear_cross_entropy
from train.model.loss_tokens import token_chunk

SHAPES = [(5, 123, 384), (1, 4, 3), (64, 32, 5000), (130, 16, 4099)]
FORMULATIONS = [("vocab", None), ("vocab", 100), ("vocab", 1), ("tokens", None), ("tokens", 7), ("naive", None)]


def _problem(n: int, d: int, v: int, ignored: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * v)
    hidden = torch.randn(n, d, generator=generator)
    weight = torch.randn(v, d, generator=generator) * 0.3
    labels = torch.randint(0, v, (n,), generator=generator)
    if ignored and n > 1:
        labels[::3] = -100
    return hidden, weight, labels


def _reference(hidden: Tensor, weight: Tensor, labels: Tensor, scale: float) -> tuple[float, Tensor, Tensor]:
    """Mean loss in float64 and the gradients of ``scale`` times it."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    loss = F.cross_entropy(hidden @ weight.T, labels)
    (loss * scale).backward()
    return loss.item(), hidden.grad, weight.grad


def _error(value: Tensor, reference: Tensor) -> float:
    return ((value - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize(("backend", "chunk"), FORMULATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_float64_reference(shape: tuple[int, int, int], backend: Any, chunk: int | None) -> None:
    if backend == "vocab" and chunk == 1 and shape[2] > 400:
        chunk = 1000
    hidden, weight, labels = _problem(*shape)
    expected, grad_hidden, grad_weight = _reference(hidden, weight, labels, scale=3.0)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, labels, backend=backend, chunk=chunk)
    (loss * 3.0).backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, abs=3e-6)
    assert _error(hidden.grad, grad_hidden) < 2e-6
    assert _error(weight.grad, grad_weight) < 2e-6


@pytest.mark.parametrize(("backend", "chunk"), [("vocab", None), ("tokens", None), ("tokens", 16)])
def test_bfloat16_is_no_worse_than_the_naive_loss(backend: Any, chunk: int | None) -> None:
    hidden, weight, labels = _problem(130, 64, 4099)
    expected, grad_hidden, grad_weight = _reference(hidden, weight, labels, scale=1.0)

    def errors(name: Any, size: int | None) -> tuple[float, float, float]:
        states, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = linear_cross_entropy(states, head, labels, backend=name, chunk=size)
        loss.backward()
        assert states.grad.dtype == head.grad.dtype == torch.float32
        return abs(loss.item() - expected), _error(states.grad, grad_hidden), _error(head.grad, grad_weight)

    ours, naive = errors(backend, chunk), errors("naive", None)
    assert ours[0] < 2e-3
    assert ours[1] < max(1.2 * naive[1], 1e-3) < 2e-2
    assert ours[2] < max(1.2 * naive[2], 1e-3) < 2e-2


def test_bfloat16_parameters_work_without_autocast() -> None:
    hidden, weight, labels = _problem(64, 32, 500)
    expected, _, grad_weight = _reference(hidden, weight, labels, scale=1.0)
    for backend in ("vocab", "tokens"):
        states, head = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
        loss = linear_cross_entropy(states, head, labels, backend=backend)  # type: ignore[arg-type]
        loss.backward()
        assert loss.dtype == torch.float32
        assert head.grad.dtype == states.grad.dtype == torch.bfloat16
        assert loss.item() == pytest.approx(expected, abs=2e-2)
        assert _error(head.grad.float(), grad_weight.float()) < 2e-2


@pytest.mark.parametrize(("backend", "chunk"), FORMULATIONS)
def test_the_loss_without_gradients_is_the_same(backend: Any, chunk: int | None) -> None:
    hidden, weight, labels = _problem(33, 8, 301)
    expected = F.cross_entropy((hidden @ weight.T).double(), labels, reduction="sum")
    with torch.no_grad():
        total = linear_cross_entropy(hidden, weight, labels, num_items=1, backend=backend, chunk=chunk)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("backend", ["vocab", "tokens", "naive"])
def test_without_any_target_the_loss_is_zero_and_so_are_the_gradients(backend: Any) -> None:
    hidden, weight, labels = _problem(6, 8, 50)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, labels.fill_(-100), backend=backend)
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad.abs().max() == 0
    assert weight.grad.abs().max() == 0


@pytest.mark.parametrize("backend", ["vocab", "tokens"])
def test_extreme_logits_stay_finite(backend: Any) -> None:
    hidden = torch.tensor([[400.0, 0.0], [-400.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 1]), backend=backend, chunk=1)
    loss.backward()
    assert loss.item() == pytest.approx(400.0)  # 800 nats for the first token, none for the second
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("backend", ["vocab", "tokens", "naive"])
def test_micro_batches_with_the_global_count_add_up_to_the_batch(backend: Any) -> None:
    hidden, weight, labels = _problem(40, 8, 97)
    _, grad_hidden, grad_weight = _reference(hidden, weight, labels, scale=1.0)
    whole = linear_cross_entropy(hidden, weight, labels, backend=backend).item()
    count = (labels != -100).sum()
    hidden.requires_grad_()
    weight.requires_grad_()
    total = 0.0
    for part, num_items in ((slice(0, 11), int(count)), (slice(11, 40), count)):
        loss = linear_cross_entropy(hidden[part], weight, labels[part], num_items=num_items, backend=backend)
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole, rel=1e-5)
    assert _error(hidden.grad, grad_hidden) < 2e-6
    assert _error(weight.grad, grad_weight) < 2e-6


@pytest.mark.parametrize("backend", ["vocab", "tokens"])
def test_the_graph_may_be_used_twice(backend: Any) -> None:
    hidden, weight, labels = _problem(9, 8, 50)
    weight.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, labels, backend=backend)
    (once,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (twice,) = torch.autograd.grad(loss * 2.0, weight)
    assert torch.allclose(twice, 2 * once)


@pytest.mark.parametrize("backend", ["vocab", "tokens"])
def test_only_the_gradients_asked_for_are_made(backend: Any) -> None:
    hidden, weight, labels = _problem(9, 8, 50)
    hidden.requires_grad_()
    linear_cross_entropy(hidden, weight, labels, backend=backend).backward()
    _, expected, _ = _reference(hidden.detach(), weight, labels, scale=1.0)
    assert _error(hidden.grad, expected) < 2e-6
    assert weight.grad is None


class _LargestTensor(TorchDispatchMode):
    """Records the most elements that any result of any operation had."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize(("backend", "chunk"), [("vocab", 64), ("tokens", 32), ("naive", None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_as_large_as_the_logits(backend: Any, chunk: int | None, dtype: torch.dtype) -> None:
    n, d, v = 512, 4, 2000
    hidden, weight, labels = _problem(n, d, v)
    hidden.requires_grad_()
    weight.requires_grad_()
    with _LargestTensor() as largest, torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        linear_cross_entropy(hidden, weight, labels, backend=backend, chunk=chunk).backward()
        with torch.no_grad():
            linear_cross_entropy(hidden, weight, labels, backend=backend, chunk=chunk)
    if backend == "naive":
        assert largest.numel >= n * v  # the measurement sees logits where there are some
    else:
        assert largest.numel <= max(n * 64, 32 * v)


def test_default_chunks_bound_the_logits_at_the_real_size() -> None:
    vocabulary = 256_008
    cpu = token_chunk(vocabulary, torch.device("cpu"), None)
    cuda = token_chunk(vocabulary, torch.device("cuda"), None)
    assert 64 <= cpu <= 512
    assert 4096 <= cuda <= 8192
    assert cuda * vocabulary < 2**31
    assert token_chunk(vocabulary, torch.device("cuda"), 5) == 5


def test_auto_takes_the_formulation_of_the_device() -> None:
    assert choose_backend("auto", torch.device("cpu"), torch.bfloat16) == "vocab"
    assert choose_backend("auto", torch.device("cpu"), torch.float32) == "tokens"
    assert choose_backend("auto", torch.device("cuda"), torch.bfloat16) == "tokens"


@pytest.mark.parametrize("backend", ["vocab", "tokens"])
def test_runs_inside_a_compiled_function(backend: Any) -> None:
    hidden, weight, labels = _problem(9, 8, 50)
    hidden.requires_grad_()

    def double_loss(states: Tensor) -> Tensor:
        return linear_cross_entropy(states * 2.0, weight, labels, backend=backend) * 2.0

    expected = double_loss(hidden)
    (expected_grad,) = torch.autograd.grad(expected, hidden)
    compiled = torch.compile(double_loss, backend="aot_eager")(hidden)
    (grad,) = torch.autograd.grad(compiled, hidden)
    assert compiled.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(grad, expected_grad, atol=1e-7)


def _bad_inputs() -> Iterator[Any]:
    hidden, weight, labels = _problem(4, 8, 50)
    wrong = labels.clone()
    wrong[1] = 50
    yield pytest.param((hidden, weight, wrong), {}, "label 50 lies outside the vocabulary of 50", id="label too large")
    yield pytest.param((hidden, weight, wrong - 60), {}, "label -", id="label negative")
    yield pytest.param((hidden, weight[:, 1:], labels), {}, r"\(4, 8\) and weight \(50, 7\)", id="widths differ")
    yield pytest.param((hidden, weight, labels[1:]), {}, "one entry per row", id="lengths differ")
    yield pytest.param((hidden, weight, labels), {"chunk": 0}, "chunk must be positive", id="chunk 0")
    yield pytest.param((hidden, weight, labels), {"backend": "fast"}, "choose one of auto", id="unknown backend")
    yield pytest.param((hidden, weight, labels), {"backend": "naive", "chunk": 5}, "no chunks", id="naive chunk")
    yield pytest.param((hidden, weight, labels), {"backend": "liger"}, "needs a GPU, not cpu", id="liger on cpu")
    yield pytest.param((hidden, weight, labels), {"backend": "cce"}, "needs a GPU, not cpu", id="cce on cpu")


@pytest.mark.parametrize(("arguments", "options", "message"), _bad_inputs())
def test_bad_input_is_named(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*arguments, **options)


def test_a_missing_kernel_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(loss_module.importlib, "import_module", missing)
    with pytest.raises(ValueError, match="pip install cut-cross-entropy"):
        loss_module._import_optional("cce", "cut_cross_entropy", "cut-cross-entropy", torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("backend", "chunk"), [("tokens", None), ("tokens", 64), ("vocab", None)])
def test_cuda_equals_the_reference(backend: Any, chunk: int | None) -> None:
    hidden, weight, labels = _problem(300, 64, 5000)
    expected, grad_hidden, grad_weight = _reference(hidden, weight, labels, scale=1.0)
    states, head = hidden.cuda().requires_grad_(), weight.cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = linear_cross_entropy(states, head, labels.cuda(), backend=backend, chunk=chunk)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=5e-3)
    assert _error(states.grad.cpu(), grad_hidden) < 1e-2
    assert _error(head.grad.cpu(), grad_weight) < 1e-2


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    hidden, weight, labels = _problem(7, 8, 77, ignored=False)
    assert linear_cross_entropy(hidden, weight * 0, labels).item() == pytest.approx(math.log(77), rel=1e-6)
