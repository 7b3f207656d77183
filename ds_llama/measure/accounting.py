"""Live tensor bytes, counted by storage, per device type and in total, with peaks per phase.

    account = Account(accelerator="cuda")
    account.track(model.parameters())
    with account:
        with account.phase("forward"):
            loss = model(ids, labels=ids).loss
        with account.phase("backward"):
            loss.backward()
    account.phases[0].device.peak_bytes

What is counted is what the program holds, not what an allocator took for it: the numbers are the
same on every machine, and on fake tensors. A storage counts once, with all of its bytes, however
many views and aliases it has, from the operation that made it until its last owner is gone.

Three ways in which bytes change, and who sees them:
  made by an operation   __torch_dispatch__, which looks at inputs (made elsewhere) and outputs
  died                   a weak reference to the storage
  resized in place       untyped_storage().resize_, by which FSDP and ZeRO-3 free and refill a
                         parameter: no operation passes, so the method is wrapped while counting
Scratch memory inside a kernel is seen by nobody; see device memory for that.
"""

from __future__ import annotations

import gc
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from ds_llama.measure import storages

TOTAL = "total"

CATEGORIES = (
    "parameters",
    "gradients",
    "master",
    "optimizer",
    "buckets",
    "activations",
    "logits",
    "other",
)
"""What bytes are for; the keys of a plan's `terms`."""

_ENTERED: ContextVar[Account | None] = ContextVar("account", default=None)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A phase of the Account that is entered here; without one, nothing.

    The package's own code marks with it: construct, initialise, forward, backward, step, save.
    """
    account = _ENTERED.get()
    if account is None:
        yield
    else:
        with account.phase(name):
            yield


@dataclass(frozen=True)
class Bytes:
    """Bytes that are live now, and the most that were live at once."""

    now_bytes: int = 0
    peak_bytes: int = 0

    def to_dict(self) -> dict[str, int]:
        return {"now_bytes": self.now_bytes, "peak_bytes": self.peak_bytes}


@dataclass(frozen=True)
class Phase:
    """One phase: bytes at its end and its peak, by device type; `total` has a peak of its own."""

    name: str
    by_type: dict[str, Bytes]
    total: Bytes
    accelerator: str

    @property
    def device(self) -> Bytes:
        """Bytes on the accelerator; on a CPU run everything is here."""
        return self.by_type.get(self.accelerator, Bytes())

    @property
    def host(self) -> Bytes:
        """Bytes in host memory beside an accelerator; none on a CPU run."""
        return Bytes() if self.accelerator == "cpu" else self.by_type.get("cpu", Bytes())

    def to_dict(self) -> dict[str, Any]:
        parts = {"device": self.device, "host": self.host, "total": self.total}
        return {"name": self.name, **{key: part.to_dict() for key, part in parts.items()}}


class _Live(weakref.ref):  # type: ignore[type-arg]
    """A storage that is counted: where it is and how large it was when last seen."""

    __slots__ = ("device", "key", "size")
    key: int
    size: int
    device: str


class Account(TorchDispatchMode):
    """Counts while entered, in this thread and in autograd's threads for its backward passes.

    `accelerator` is the device type that a Phase calls `device`. Garbage in reference cycles dies
    when the collector happens to run; so that two runs agree, the collector is off while counting
    and runs at the edges of phases. Not re-entrant.
    """

    def __init__(self, accelerator: str = "cpu") -> None:
        super().__init__()
        self.accelerator = accelerator
        self.phases: list[Phase] = []
        self._live: dict[int, _Live] = {}
        self._dead: deque[_Live] = deque()
        self._now: dict[str, int] = {TOTAL: 0}
        self._peaks: list[dict[str, int]] = [{TOTAL: 0}]
        self._collecting = False

    # --- reading -------------------------------------------------------------------------------

    def bytes(self, device: str = TOTAL) -> Bytes:
        """Bytes of one device type ("cpu", "cuda", "total") since this account was made."""
        self._bury()
        return Bytes(self._now.get(device, 0), self._peaks[0].get(device, 0))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Append a Phase to `phases` at the end. Phases may nest; each has its own peaks."""
        self._collect()
        peaks = dict(self._now)
        self._peaks.append(peaks)
        try:
            yield
        finally:
            self._collect()
            self._peaks = [kept for kept in self._peaks if kept is not peaks]
            by_type = {
                key: Bytes(self._now[key], peak) for key, peak in peaks.items() if key != TOTAL
            }
            total = Bytes(self._now[TOTAL], peaks[TOTAL])
            self.phases.append(Phase(name, by_type, total, self.accelerator))

    # --- counting ------------------------------------------------------------------------------

    def track(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that exist already: parameters, buffers, their gradients if any."""
        for tensor in tensors:
            self._see(tensor)
            if tensor.is_leaf and tensor.grad is not None:
                self._see(tensor.grad)

    def __enter__(self) -> Account:
        self._collecting = gc.isenabled()
        self._collect()
        gc.disable()
        storages.watch(self._resized)
        self._outer = _ENTERED.set(self)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        _ENTERED.reset(self._outer)
        storages.unwatch(self._resized)
        if self._collecting:
            gc.enable()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(storages.is_wrapper(kind) for kind in types):
            # A DTensor's own handler runs next, and the plain operations inside come back here.
            return NotImplemented
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        out = func(*args, **kwargs)
        # inputs again: an operation may have resized them, or given them another storage
        for leaf in tree_leaves((out, args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        if is_traceable_wrapper_subclass(tensor):
            names, _ = tensor.__tensor_flatten__()
            for name in names:
                self._see(getattr(tensor, name))
            return
        if tensor.device.type == "meta":
            return
        for part in storages.strided_parts(tensor):
            # A fake tensor's storage is a meta storage: the device is the tensor's.
            self._count(part.untyped_storage(), tensor.device.type)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        known = self._live.get(storage._cdata)
        device = known.device if known is not None else storage.device.type
        if device != "meta":
            self._count(storage, device)

    def _count(self, storage: torch.UntypedStorage, device: str) -> None:
        self._bury()
        key, size = storage._cdata, storage.nbytes()
        live = self._live.get(key)
        if live is None:
            live = _Live(storage, self._dead.append)
            live.key, live.size, live.device = key, 0, device
            self._live[key] = live
        if size != live.size:
            self._add(live.device, size - live.size)
            live.size = size

    def _add(self, device: str, size: int) -> None:
        for key in (device, TOTAL):
            self._now[key] = now = self._now.get(key, 0) + size
            for peaks in self._peaks:
                peaks[key] = max(peaks.get(key, 0), now)

    def _bury(self) -> None:
        # A storage may die in any thread at any bytecode, so its death is only queued there.
        while self._dead:
            live = self._dead.popleft()
            if self._live.get(live.key) is live:
                del self._live[live.key]
                self._add(live.device, -live.size)

    def _collect(self) -> None:
        gc.collect()
        if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
            self._settle()
        self._bury()

    def _settle(self) -> None:
        """Wait until no storage has died for 6 ms, at most 100 ms.

        gloo's threads wake who waits for a collective first, and let go of its tensors then: a
        whole bucket of gradients would be counted, or not, as the threads happen to run.
        """
        quiet, end = 0, time.monotonic() + 0.1
        while quiet < 3 and time.monotonic() < end:
            dead = len(self._dead)
            time.sleep(0.002)
            quiet = quiet + 1 if len(self._dead) == dead else 0
