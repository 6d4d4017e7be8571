"""How the weights of a checkpoint become a model: the options, in a file that imports no library."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


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
