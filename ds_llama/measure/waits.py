"""Time of collectives and of copies over the host link, waiting for each at once; of NVMe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ds_llama.measure import traffic
from ds_llama.measure.observing import Beside
from ds_llama.measure.timers import StepTimer

_GATHERS = frozenset(("all_gather", "broadcast", "gather", "scatter"))
_COPIES = frozenset(
    (
        torch.ops.aten._to_copy.default,
        torch.ops.aten.copy_.default,
        torch.ops.aten._foreach_copy_.default,
    )
)


# Not a context variable: autograd's own threads, in which a GPU's hooks run, would not see it.
_entered: list[Waits] = []


@contextmanager
def swapping() -> Iterator[None]:
    """The part "nvme" of a step, if parts are told apart: what is handed over there, or waited for.

    Not waited for at once as all else: DeepSpeed counts its requests, and asserts that a wait ends
    as many as it made (swap_tensor/pipelined_optimizer_swapper.py:36). What the disk does while
    something is computed is in no part.
    """
    if not _entered:
        yield
        return
    with _entered[-1]._timer.part("nvme"):
        yield


class Waits(Beside):
    """While entered: `timer`'s parts "reduce", "gather", "host link", and "nvme" (`swapping`).

    Nothing overlaps any more: what is seen is what each takes alone, waiting for the slowest rank
    included, and not what it costs a step. Calls that carry nothing (`traffic.is_control`: flags,
    norms, the loss) are where ranks wait for each other too: they are the part "other".
    """

    def __init__(self, timer: StepTimer, synchronize: Callable[[], None]) -> None:
        super().__init__()
        self._timer, self._synchronize = timer, synchronize

    def __enter__(self) -> Waits:
        super().__enter__()
        _entered.append(self)
        return self

    def __exit__(self, *exception: Any) -> None:
        _entered.remove(self)
        super().__exit__(*exception)

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
