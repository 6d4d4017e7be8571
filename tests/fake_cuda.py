"""A CUDA device that computes nothing: shapes, dtypes and devices are followed, values are not.

Tensors on `cuda` are torch's fake tensors, tensors on the CPU are real. An operation that mixes the devices raises as
it would on a GPU. Whatever makes the host wait for the device (a value that is read, a copy to the CPU, a result whose
size depends on values) is answered by ones and counted at the place in this repository that asked. `prepare` is for
torch without CUDA and must be called before torch is imported, hence in a process of its own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]


def compile_guard(folder: Path) -> Path:
    """Build tests/fake_cuda.cpp against the installed torch; seconds."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch_folder = Path(spec.origin).parent
    target, libraries = folder / "fake_cuda.so", torch_folder / "lib"
    options = ["-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", f"-L{libraries}"]
    links = ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]
    subprocess.run(["c++", *options, str(ROOT / "tests" / "fake_cuda.cpp"), "-o", str(target), *links], check=True)
    return target


def prepare(guard: Path) -> None:
    """Give this process the device."""
    assert "torch" not in sys.modules
    ctypes.CDLL(str(guard))


class Waits(Counter[str]):
    """How often each place, `path:function`, made the host wait for the device. Behind `upload `: by a copy onto it;
    the host waits for that too, unless it is told not to, since its memory may change right after."""

    def note(self, kind: str = "") -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and not {".venv", "tests"} & set(path.relative_to(ROOT).parts):
                self[f"{kind}{path.relative_to(ROOT)}:{frame.f_code.co_name}"] += 1
                return
            frame = frame.f_back
        self["elsewhere"] += 1


@contextmanager
def fake_cuda() -> Iterator[Waits]:
    """A `cuda` device inside the block; yields what made the host wait for it."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    aten = torch.ops.aten
    waits = Waits()

    def on_host(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)

    def indices(index: Any) -> list[Any]:
        """What a mask chooses has a size that only the device knows: as if it chose all."""
        if on_host(index):
            waits.note("upload ")
        if index is None or index.dtype != torch.bool:
            return [index]
        waits.note()
        return [torch.ones(index.numel(), dtype=torch.int64, device=index.device) for _ in range(index.dim())]

    class Device(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            device = kwargs.get("device")
            wanted = None if device is None else torch.device(device).type
            if wanted != "cuda" and not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
                with unset_fake_temporarily():
                    return func(*args, **kwargs)
            read = func in (aten._local_scalar_dense.default, aten.equal.default)
            copied = func is aten._to_copy.default and wanted == "cpu"
            copied_into = func is aten.copy_.default and on_host(args[0])
            uploaded = (func is aten._to_copy.default and wanted == "cuda" and on_host(args[0])) or (
                func is aten.copy_.default and not copied_into and on_host(args[1])
            )
            if uploaded and not kwargs.get("non_blocking"):
                waits.note("upload ")
            unique = func in (aten._unique2.default, aten.unique_dim.default)
            if read or copied or copied_into or unique or func is aten.nonzero.default:
                waits.note()
            if copied_into:
                with unset_fake_temporarily():
                    return args[0].fill_(1)
            if copied or read:
                with unset_fake_temporarily():
                    ones: Tensor = torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
                    return ones if copied else True if func is aten.equal.default else ones.item()
            if unique:  # as if nothing were there twice
                rows = args[0].shape[args[1]] if func is aten.unique_dim.default else args[0].numel()
                places = torch.arange(rows, device=args[0].device)
                return args[0].clone(), places, torch.ones_like(places)
            if func is aten.nonzero.default:
                return torch.ones(args[0].numel(), args[0].dim(), dtype=torch.int64, device=args[0].device)
            if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
                args = (args[0], [part for one in args[1] for part in indices(one)], *args[2:])
            return func(*args, **kwargs)

    def tolist(tensor: Tensor) -> Any:
        """One copy; a fake tensor's own reads value by value."""
        return tensor.cpu().tolist()

    with ExitStack() as stack:
        for name, value in (("cuda.amp.common.amp_definitely_not_available", False), ("cuda.is_bf16_supported", True)):
            stack.enter_context(mock.patch(f"torch.{name}", return_value=value))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        # Below the other mode: answers for the device, and by being there keeps torch from looking for a real one.
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Device())
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", tolist))
        yield waits
