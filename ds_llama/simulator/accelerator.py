"""The device "sim" for torch and for DeepSpeed: memory apart from the host's, and no arithmetic."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from deepspeed.accelerator.abstract_accelerator import DeepSpeedAccelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from torch.utils import backend_registration

from ds_llama.simulator import autocast, pinned

NAME = "sim"
_kernels: list[torch.library.Library] = []  # what they register ends with them


class SimModule(backend_registration._DummyBackendModule):
    """What torch asks of `torch.sim`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def register_device() -> None:
    """Make torch know devices called "sim"; once in a process, before any tensor is made there."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=SimModule())
    autocast.register()
    # Elsewhere than on CPU and CUDA torch takes this one apart, into seven results of its size.
    kernels = torch.library.Library("aten", "IMPL", "PrivateUse1")
    kernels.impl("silu_backward", lambda grad, x: torch.empty_like(x))
    _kernels.append(kernels)


class Nothing:
    """A stream or an event: whatever is asked of it is done already."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return self._done

    def _done(self, *_: Any, **__: Any) -> bool:
        return True


class SimAccelerator(CPU_Accelerator):
    """What DeepSpeed asks of an accelerator, answered as its CUDA accelerator does.

    The base class is the CPU's for what neither memory nor time depends on. Streams exist, so that
    DeepSpeed takes its asynchronous paths, double buffers included; work on them is in order.
    """

    _torch_pins_host_memory = True

    def __init__(self) -> None:
        super().__init__()
        self._name, self._stream = NAME, Nothing()

    # --- who it is -----------------------------------------------------------------------------

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

    def available_memory(self, device_index: int | None = None) -> int:
        """Room for everything: what a run holds must not depend on where it is simulated."""
        return 2**60

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == NAME

    def is_fp16_supported(self) -> bool:
        return True

    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.float, torch.half, torch.bfloat16]

    def communication_backend_name(self) -> str:
        return "fake"

    # --- asynchronous, as CUDA is --------------------------------------------------------------

    def is_synchronized_device(self) -> bool:
        return False

    def use_host_timers(self) -> bool:
        return True  # there is no other clock

    def resolves_data_dependency(self) -> bool:
        return False

    def handles_memory_backpressure(self) -> bool:
        return False

    @property
    def Stream(self) -> type[Nothing]:
        return Nothing

    @property
    def Event(self) -> type[Nothing]:
        return Nothing

    def stream(self, stream: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def current_stream(self, device_index: int | None = None) -> Nothing:
        return self._stream

    def default_stream(self, device_index: int | None = None) -> Nothing:
        return self._stream

    # --- tensors of a type, on the device ------------------------------------------------------

    BFloat16Tensor = property(lambda self: self._of(torch.bfloat16))
    ByteTensor = property(lambda self: self._of(torch.uint8))
    DoubleTensor = property(lambda self: self._of(torch.double))
    FloatTensor = property(lambda self: self._of(torch.float))
    HalfTensor = property(lambda self: self._of(torch.half))
    IntTensor = property(lambda self: self._of(torch.int))
    LongTensor = property(lambda self: self._of(torch.long))

    def _of(self, dtype: torch.dtype) -> Any:
        return partial(torch.tensor, dtype=dtype, device=NAME)

    # --- page-locked host memory ---------------------------------------------------------------

    pin_memory = DeepSpeedAccelerator.pin_memory  # the CPU's pins nothing

    def _torch_pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """`Tensor.pin_memory` copies what is not pinned yet."""
        return tensor if pinned.is_pinned(tensor) else pinned.pin(tensor.clone())

    def _torch_empty_pinned(self, tensor: torch.Tensor, shape: Any) -> torch.Tensor:
        return pinned.pin(tensor.new_empty(shape))

    def _torch_is_pinned(self, tensor: torch.Tensor) -> bool:
        return pinned.is_pinned(tensor)
