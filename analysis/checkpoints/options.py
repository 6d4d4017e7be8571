"""How the weights of a checkpoint become a model: the options, and where they put it. Libraries wait for their use."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How the weights of a checkpoint become a model."""

    architecture: str | None = None
    """Class to use when the config names none or a wrong one: `BloomForCausalLM` of transformers, or a dotted path."""
    dtype: Literal["float32", "float16", "bfloat16", "stored"] = "float32"
    """Precision of weights and forward pass. float32 is what reported results use; `stored` takes the file's own."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1` ...; `auto` is the first GPU, or the CPU."""
    devices: list[str] = field(default_factory=list)
    """Several devices for one checkpoint: each has all weights and takes a share of the texts. Replaces `device`."""
    device_map: str | dict[str, int | str] | None = None
    """`auto` spreads weights that exceed the device over GPUs, main memory and disk (accelerate). Replaces `device`."""
    max_memory: dict[int | str, str] | None = None
    """With `device_map`: most memory per device, as in {0: 20GiB, cpu: 60GiB}."""
    offload_folder: Path | None = None
    """With `device_map`: where weights go that fit no memory."""
    check_tokenizer: bool = True
    """Refuse a tokenizer much smaller than the model's vocabulary. Ids beyond it are always refused."""

    def __post_init__(self) -> None:
        if self.device_map is None and (self.max_memory is not None or self.offload_folder is not None):
            raise ValueError("loading: max_memory and offload_folder need a device_map; set device_map: auto")
        if self.devices and (self.device != "auto" or self.device_map is not None):
            raise ValueError("loading: devices stands in place of device and device_map; name one of the three")
        for device in [*self.devices, *([] if self.device == "auto" else [self.device])]:
            import torch

            try:
                torch.device(device)
            except RuntimeError as error:
                raise ValueError(f"loading: device {device!r}: {' '.join(str(error).split())}") from None

    @property
    def chosen_devices(self) -> tuple[torch.device, ...]:
        """The devices when there is no `device_map`, that of the model itself first.

        Raises:
            ValueError: a GPU is asked for and there is none (or fewer).
        """
        import torch

        if not self.devices and self.device == "auto":
            return (torch.device("cuda" if torch.cuda.is_available() else "cpu"),)
        devices = tuple(torch.device(name) for name in self.devices or [self.device])
        for device in devices:
            if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
                raise ValueError(f"loading: device {str(device)!r}: this machine has {torch.cuda.device_count()} GPUs")
        return devices


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 natively; elsewhere it is emulated, up to 8 times slower than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    # AVX-512 BF16 or AMX, as `train.cli.default_precision` asks for.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)


def make_ready(model: Any, loading: Loading) -> PreTrainedModel:
    """A model whose weights are in main memory: in its precision, on its device or spread by the device map, frozen.

    Raises:
        ValueError: the device map needs an `offload_folder`, or a device that is not there.
    """
    import torch

    if loading.dtype != "stored":
        model = model.to(dtype=getattr(torch, loading.dtype))
    if loading.device_map is None:
        device = loading.chosen_devices[0]
        if loading.dtype == "bfloat16" and not computes_bf16(device):
            logger.warning("loading.dtype bfloat16 is emulated on this %s and slower than float32", device.type)
        model = model.to(device)
    else:
        _spread(model, loading)
    return model.eval().requires_grad_(False)


def _spread(model: Any, loading: Loading) -> None:
    """Lay out weights in main memory by the device map, as `from_pretrained` does while it reads them."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    places: Any = loading.device_map
    if places in ("auto", "balanced", "balanced_low_0", "sequential"):
        memory: Any = loading.max_memory
        whole = list(model._no_split_modules or [])
        if places != "sequential":
            memory = get_balanced_memory(
                model, memory, no_split_module_classes=whole, low_zero=places == "balanced_low_0"
            )
        places = infer_auto_device_map(model, memory, no_split_module_classes=whole)
    elif isinstance(places, str):
        places = {"": places}
    folder = None
    if "disk" in places.values() and loading.offload_folder is None:
        raise ValueError("loading: the device map puts weights on disk; set offload_folder")
    if loading.offload_folder is not None:
        loading.offload_folder.mkdir(parents=True, exist_ok=True)
        # One of its own that is gone with the model: accelerate takes weights that lie in a folder already for its own.
        model._offloaded = folder = TemporaryDirectory(dir=loading.offload_folder)
    skipped = model._skip_keys_device_placement
    dispatch_model(model, places, offload_dir=None if folder is None else folder.name, skip_keys=skipped)


def release() -> None:
    """Give back the memory of models that are no longer referenced."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
