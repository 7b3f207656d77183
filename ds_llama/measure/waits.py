"""Time of collectives and of copies over the host link, by waiting for each at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ds_llama.measure import storages
from ds_llama.measure.timers import StepTimer

_GATHERS = ("allgather", "_allgather", "broadcast", "scatter", "gather")
_COPIES = frozenset(
    (
        torch.ops.aten._to_copy.default,
        torch.ops.aten.copy_.default,
        torch.ops.aten._foreach_copy_.default,
    )
)


class Waits(TorchDispatchMode):
    """While entered: `timer`'s parts "reduce", "gather" and "host link".

    Nothing overlaps any more: what is seen is what each takes alone, not what it costs a step.
    """

    def __init__(self, timer: StepTimer, synchronize: Callable[[], None]) -> None:
        super().__init__()
        self._timer, self._synchronize = timer, synchronize

    def __enter__(self) -> Waits:
        storages.load_dynamo()
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        part = _part(func, args)
        if part is None:
            return func(*args, **(kwargs or {}))
        with self._timer.part(part):
            out = func(*args, **(kwargs or {}))
            for found in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(found, torch.ScriptObject) and hasattr(found, "wait"):
                    found.wait()
            self._synchronize()
        return out


def _part(func: Any, args: tuple[Any, ...]) -> str | None:
    if func.namespace == "c10d":
        return "gather" if func._opname.startswith(_GATHERS) else "reduce"
    if func in _COPIES and _crosses(args):
        return "host link"
    return None


def _crosses(args: tuple[Any, ...]) -> bool:
    tensors = [a[0] if isinstance(a, list) and a else a for a in args[:2]]
    kinds = {t.device.type for t in tensors if isinstance(t, torch.Tensor)}
    return len(kinds) > 1 and "meta" not in kinds
