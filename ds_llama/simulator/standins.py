"""In the place of DeepSpeed's compiled ops, which take addresses that fake tensors do not have.

The Python around an op (`DeepSpeedCPUAdam`, `FusedAdam`, the swappers) is DeepSpeed's own and makes
its state itself. A stand-in has the op's functions, allocates what they give back, and computes
nothing. That the ops allocate nothing else is held by a test that runs the real `cpu_adam`,
`fused_adam`, `async_io` and torch's own fused AdamW under accounting beside their stand-ins; an op
that no test holds has none, and `refusals` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from ds_llama.errors import ConfigError
from ds_llama.simulator import pinned


def load(builder: Any, verbose: bool = False) -> Any:
    """What `OpBuilder.load` returns, for the ops that a simulation may meet."""
    if builder.NAME not in OPS:
        raise ConfigError(
            f"the run needs DeepSpeed's op {builder.NAME}, which has no stand-in to simulate it",
            where="deepspeed",
            remedy="leave out what needs it",
        )
    return OPS[builder.NAME]


@dataclass
class Nvme:
    """The simulated disk: sizes of files. `measure.traffic` counts what goes there and back."""

    files: dict[str, int] = field(default_factory=dict)

    @property
    def now_bytes(self) -> int:
        return sum(self.files.values())


NVME = Nvme()


class AioHandle:
    """`async_io.aio_handle` (csrc/aio/py_lib/py_ds_aio.cpp): files have a size and no content."""

    def __init__(
        self,
        block_size: int = 1 << 20,
        queue_depth: int = 128,
        single_submit: bool = False,
        overlap_events: bool = False,
        intra_op_parallelism: int = 1,
    ) -> None:
        self._parallelism, self._pending = intra_op_parallelism, 0

    def async_pread(self, buffer: torch.Tensor, path: str, offset: int) -> int:
        self._pending += 1
        return 0

    def async_pwrite(self, buffer: torch.Tensor, path: str, offset: int) -> int:
        NVME.files[path] = max(NVME.files.get(path, 0), offset + buffer.nbytes)
        self._pending += 1
        return 0

    def sync_pread(self, buffer: torch.Tensor, path: str, offset: int) -> int:
        self.async_pread(buffer, path, offset)
        return self.wait()

    def sync_pwrite(self, buffer: torch.Tensor, path: str, offset: int) -> int:
        self.async_pwrite(buffer, path, offset)
        return self.wait()

    def wait(self) -> int:
        done, self._pending = self._pending, 0
        return done

    def get_alignment(self) -> int:
        return 512 * self._parallelism

    def new_cpu_locked_tensor(self, count: int, example: torch.Tensor) -> torch.Tensor:
        return pinned.pin(torch.empty(count, dtype=example.dtype, device="cpu"))

    def free_cpu_locked_tensor(self, tensor: torch.Tensor) -> bool:
        return True

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return pinned.is_pinned(tensor)


def _nothing(*_: Any, **__: Any) -> int:
    return 0


OPS: Mapping[str, Any] = {
    "cpu_adam": SimpleNamespace(
        create_adam=_nothing, destroy_adam=_nothing, adam_update=_nothing, adam_rollback=_nothing
    ),
    "fused_adam": SimpleNamespace(multi_tensor_adam=_nothing),
    "async_io": SimpleNamespace(aio_handle=AioHandle),
    "pin_memory": SimpleNamespace(),  # loaded before async_io, which shares its list
}
