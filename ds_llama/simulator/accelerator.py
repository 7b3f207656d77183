"""The device "sim" for torch and for DeepSpeed: memory apart from the host's, and no arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from torch.utils import backend_registration

NAME = "sim"


class SimModule(backend_registration._DummyBackendModule):
    """What torch asks of `torch.sim`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def register_device() -> None:
    """Make torch know devices called "sim"; once in a process, before any tensor is made there."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=SimModule())


class SimAccelerator(CPU_Accelerator):
    """What DeepSpeed asks of an accelerator, answered as its CUDA accelerator would."""

    def __init__(self) -> None:
        super().__init__()
        self._name = NAME

    def device_name(self, device_index: int | None = None) -> str:
        return NAME if device_index is None else f"{NAME}:{device_index}"

    def device(self, device_index: int | None = None) -> torch.device:
        return torch.device(NAME, device_index or 0)

    def current_device_name(self) -> str:
        return f"{NAME}:0"

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return True

    def pin_memory(self, tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return tensor

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == NAME

    def is_fp16_supported(self) -> bool:
        return True

    def communication_backend_name(self) -> str:
        return "fake"
