"""Time of collectives and of copies over the host link, by waiting for each at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ds_llama.measure import storages, traffic
from ds_llama.measure.timers import StepTimer

_GATHERS = frozenset(("all_gather", "broadcast", "gather", "scatter"))
_COPIES = frozenset(
    (
        torch.ops.aten._to_copy.default,
        torch.ops.aten.copy_.default,
        torch.ops.aten._foreach_copy_.default,
    )
)


class Waits(TorchDispatchMode):
    """While entered: `timer`'s parts "reduce", "gather" and "host link".

    Nothing overlaps any more: what is seen is what each takes alone, waiting for the slowest rank
    included, and not what it costs a step. Calls that carry nothing (`traffic.is_control`: flags,
    norms, the loss) are where ranks wait for each other too: they are the part "other".
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
        part = _part(func, args, kwargs or {})
        if part is None:
            return func(*args, **(kwargs or {}))
        with self._timer.part(part):
            out = func(*args, **(kwargs or {}))
            for found in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(found, torch.ScriptObject) and hasattr(found, "wait"):
                    found.wait()
            self._synchronize()
        return out


def _part(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if func.namespace == "c10d":
        found = traffic.payload(func, args, kwargs)
        if found is None or traffic.is_control(*found):
            return "other"
        return "gather" if found[0] in _GATHERS else "reduce"
    if func in _COPIES and _crosses(args, kwargs.get("device")):
        return "host link"
    return None


def _crosses(args: tuple[Any, ...], device: torch.device | None) -> bool:
    """Whether a copy's source and target (for `.to`: `device`) are of two kinds."""
    tensors = [a[0] if isinstance(a, (list, tuple)) and a else a for a in args[:2]]
    kinds = {t.device.type for t in tensors if isinstance(t, torch.Tensor)}
    if device is not None:
        kinds.add(torch.device(device).type)
    return len(kinds) > 1 and "meta" not in kinds
