"""Live tensor bytes, counted by storage, by device type and by what they are for, per phase.

    account = Account(accelerator="cuda")
    account.track(model.parameters())
    with account:
        with account.phase("forward"):
            loss = model(ids, labels=ids).loss
        with account.phase("backward"):
            loss.backward()
    account.phases[0].device.peak_bytes, account.phases[0].device.peak["activations"]

What is counted is what the program holds, not what an allocator took for it: the numbers are the
same on every machine, and on fake tensors. A storage counts once, with all of its bytes, however
many views and aliases it has, from the operation that made it until its last owner is gone.

Four ways in which bytes change, and who sees them:
  made by an operation   __torch_dispatch__, which looks at inputs (made elsewhere) and outputs
  made by compiled code  `measure.buffers`
  died                   a weak reference to the storage
  resized in place       untyped_storage().resize_, by which FSDP and ZeRO-3 free and refill a
                         parameter: no operation passes, so the method is wrapped while counting
Scratch memory inside a kernel is seen by nobody; see device memory for that.

Every change is put in a log while a phase is open. What a peak was made of is read from it at the
end of the phase, by when it is known what each storage was for (`measure.labels`).
"""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._traceback import CapturedTraceback

from ds_llama.measure import buffers, gloo, labels, memory, pulse, storages, timers
from ds_llama.measure.labels import Live
from ds_llama.measure.ledger import TOTAL, Change, Ledger
from ds_llama.measure.observing import Beside
from ds_llama.measure.phases import CATEGORIES, Bytes, Phase

__all__ = ["CATEGORIES", "Account", "Bytes", "Change", "Observer", "Phase", "entered", "phase"]

Holdings = Callable[[Any], Iterable[tuple[torch.Tensor, str]]]

_DEVICE = torch.ops.prim.device.default
_Known = tuple[bool, int | None, tuple["Observer", ...]]

_ENTERED: ContextVar[Account | None] = ContextVar("account", default=None)


class Observer(Protocol):
    """Who else looks at operations: `measure.traffic`, `measure.flops`."""

    def observes(self, func: Any) -> bool:
        """Whether it wants to know of an operation at all; asked once."""
        ...

    def saw(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """An operation has run."""
        ...


# Objects made since the last collection: a phase that begins where another has ended need not look
# for garbage again, which takes a tenth of a second beside a model of thousands of fake tensors.
_FEW = 700


def entered() -> Account | None:
    """The Account that is counting here."""
    return _ENTERED.get()


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A phase of the Account and of the StepTimer that are entered here, if any, and of `pulse`.

    The package's own code marks with it: construct, initialise, forward, backward, step, save.
    """
    account = _ENTERED.get()
    counted = account.phase(name) if account is not None else nullcontext()
    with pulse.within(name), timers.timed(name), counted:
        yield


class Account(Beside):
    """Counts while entered, in this thread and in autograd's threads for its backward passes.

    `accelerator` is the device type that a Phase calls `device`. `stacks` keeps the history with
    the Python stack of every storage; `history` keeps it without. `process` reads the allocator's
    and the process's memory at the end of each phase too, and starts their peaks anew at its begin.

    Garbage in reference cycles dies when the collector happens to run; so that two runs agree, the
    collector is off while counting and runs at the edges of phases. It looks at what was made since
    the account was entered: torch and DeepSpeed alone would cost it 0.2 s. Not re-entrant.
    """

    def __init__(
        self,
        accelerator: str = "cpu",
        *,
        stacks: bool = False,
        history: bool = False,
        process: bool = False,
    ) -> None:
        super().__init__()
        self.accelerator = accelerator
        self.phases: list[Phase] = []
        self.edges: list[tuple[int, str, bool]] = []
        """(changes before it, phase, whether it begins), in order; with a history only."""
        self.vocabulary: int | None = None
        """The last dimension by which logits are known."""
        self._stacks, self._process = stacks, process
        self._ledger = Ledger(keep=stacks or history)
        self._live: dict[int, Live] = {}
        self._dead: deque[Live] = deque()
        self._serial = 0
        self._open: list[str] = []
        self._made_from = labels.OTHER
        self._owners: list[tuple[weakref.ref[Any], Holdings]] = []
        self.ended: Callable[[str], None] | None = None
        """Called with a phase's name at its end."""
        self._observers: list[Observer] = []
        self._known: dict[Any, _Known] = {}
        self._collecting = False

    # --- reading -------------------------------------------------------------------------------

    def bytes(self, device: str = TOTAL) -> Bytes:
        """Bytes of one device type ("cpu", "cuda", "total") since this account was made."""
        self._bury()
        return self._ledger.bytes(device)

    @property
    def doing(self) -> str | None:
        """The innermost phase that is open."""
        return self._open[-1] if self._open else None

    def history(self) -> Iterator[Change]:
        """Every change in order; needs `history` or `stacks`."""
        return self._ledger.history()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Append a Phase to `phases` at the end. Phases may nest; each has its own peaks."""
        self._collect(unless_few=True)
        self._ledger.begin()
        self._open.append(name)
        self._edge(name, True)
        if self._process:
            memory.reset_peaks(self.accelerator)
        try:
            yield
        finally:
            process = memory.everything(self.accelerator) if self._process else None
            self._collect()
            self._ask_owners()
            found = self._ledger.end(self._live.values())
            total = found.pop(TOTAL)
            self.phases.append(Phase(name, found, total, self.accelerator, process))
            self._open.pop()
            self._edge(name, False)
            if self.ended is not None:
                self.ended(name)

    def _edge(self, name: str, begins: bool) -> None:
        if self._ledger.keep:
            self.edges.append((len(self._ledger), name, begins))

    # --- counting ------------------------------------------------------------------------------

    def track(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that exist already: parameters, buffers, their gradients if any."""
        for tensor in tensors:
            self._see(tensor)
            if tensor.is_leaf and tensor.grad is not None:
                self._see(tensor.grad)

    def ask(self, owner: Any, holdings: Holdings) -> None:
        """At every phase's end label what `holdings(owner)` yields, until the owner is gone."""
        self._owners.append((weakref.ref(owner), holdings))

    def observe(self, observer: Observer) -> None:
        """Tell `observer` of the operations that it `observes`: cheaper than a mode of its own."""
        self._observers.append(observer)
        self._known.clear()

    def __enter__(self) -> Account:
        self._collecting = gc.isenabled()
        self._collect()
        self._ask_owners()  # what was made while nobody counted
        gc.disable()
        self._frozen = gc.get_freeze_count()
        gc.freeze()
        storages.watch(self._resized)
        buffers.watch(self._see)
        gloo.nap_after_waiting()
        self._hooks = (
            register_optimizer_step_pre_hook(self._before_update),
            register_optimizer_step_post_hook(self._after_update),
        )
        self._outer = _ENTERED.set(self)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        _ENTERED.reset(self._outer)
        for hook in self._hooks:
            hook.remove()
        buffers.unwatch(self._see)
        storages.unwatch(self._resized)
        gloo.stop_napping()
        if not self._frozen:
            gc.unfreeze()
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
        if func is _DEVICE and not args[0].fake_mode.in_kernel_invocation:
            return args[0].fake_device  # asked of fake tensors, several times an operation
        kwargs = kwargs or {}
        mutates, category, observers = self._known.get(func) or self._learn(func)
        see = self._see
        given = list(storages.tensors_in(args))
        given.extend(storages.tensors_in(kwargs))
        source = labels.OTHER
        for tensor in given:
            live = see(tensor)
            if live is None:
                continue
            if live.strength == labels.MADE:
                labels.used(live, tensor)
            if category is not None:
                live.label(category, labels.USED)
            if live.category == labels.GRADIENTS:
                source = labels.GRADIENTS
        out = func(*args, **kwargs)
        self._made_from = source
        for tensor in storages.tensors_in(out):
            see(tensor)
        if mutates:  # an operation may have resized its inputs, or given them another storage
            for tensor in given:
                see(tensor)
        for observer in observers:
            observer.saw(func, args, kwargs, out)
        return out

    def _learn(self, func: Any) -> _Known:
        """Whether it changes what it is given, what a collective's tensors are, who is told."""
        category = labels.collective(func._opname) if func.namespace == "c10d" else None
        told = tuple(observer for observer in self._observers if observer.observes(func))
        known = self._known[func] = (func._schema.is_mutable, category, told)
        return known

    def _see(self, tensor: torch.Tensor) -> Live | None:
        """The storage of a strided tensor, counted; of others every part is counted."""
        if is_traceable_wrapper_subclass(tensor):
            names, _ = tensor.__tensor_flatten__()
            for part in (getattr(tensor, name) for name in names):
                if isinstance(part, torch.Tensor):  # a DTensor names its mesh too
                    self._see(part)
            return None
        # A fake tensor's storage is a meta storage: the device is the tensor's.
        device = tensor.device.type
        if device == "meta":
            return None
        if tensor.layout is torch.strided:
            return self._count(tensor.untyped_storage(), device, tensor)
        for part in storages.strided_parts(tensor):
            self._count(part.untyped_storage(), device, part)
        return None

    def _resized(self, storage: torch.UntypedStorage) -> None:
        known = self._live.get(storage._cdata)
        device = known.device if known is not None else storage.device.type
        if device != "meta":
            self._count(storage, device, None)

    def _count(
        self, storage: torch.UntypedStorage, device: str, tensor: torch.Tensor | None
    ) -> Live:
        if self._dead:
            self._bury()
        key, size = storage._cdata, storage.nbytes()
        live = self._live.get(key)
        if live is None:
            live = self._live[key] = self._new(storage, key, device)
            if tensor is not None:
                live.category = self._made(tensor)
        if size != live.size:
            self._ledger.change(live, size - live.size)
            live.size = size
        return live

    def _made(self, tensor: torch.Tensor) -> int:
        phase = self._open[-1] if self._open else ""
        return labels.made(tensor, phase, self.vocabulary, self._made_from)

    def _new(self, storage: torch.UntypedStorage, key: int, device: str) -> Live:
        live = Live(storage, self._dead.append)
        live.key, live.size, live.device, live.serial = key, 0, device, self._serial
        live.category, live.strength = labels.OTHER, labels.MADE
        live.stack = CapturedTraceback.extract() if self._stacks else None
        self._serial += 1
        return live

    def _bury(self) -> None:
        # A storage may die in any thread at any bytecode, so its death is only queued there.
        while self._dead:
            live = self._dead.popleft()
            if self._live.get(live.key) is live:
                del self._live[live.key]
                self._ledger.change(live, -live.size)

    # --- labels --------------------------------------------------------------------------------

    def label(self, tensor: torch.Tensor, category: str, *, owned: bool = False) -> None:
        """Say what a tensor's storage is for; counts it too."""
        live = self._see(tensor)
        if live is not None:
            live.label(labels.INDEX[category], labels.OWNED if owned else labels.USED)

    def _ask_owners(self) -> None:
        alive = [(ref, of, owner) for ref, of in self._owners if (owner := ref()) is not None]
        self._owners = [(ref, of) for ref, of, _ in alive]
        for _, holdings, owner in alive:
            for tensor, category in holdings(owner):
                self.label(tensor, category, owned=True)

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for master in group["params"]:
                if not isinstance(master, torch.nn.Parameter):
                    self.label(master, "master")
                if master.grad is not None:
                    self.label(master.grad, "gradients")

    def _after_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for state in optimizer.state.values():
            for moment in state.values():
                if isinstance(moment, torch.Tensor):
                    self.label(moment, "optimizer")

    # --- settling ------------------------------------------------------------------------------

    def _collect(self, *, unless_few: bool = False) -> None:
        if not (unless_few and gc.get_count()[0] < _FEW):
            gc.collect()
        if gloo.in_use():
            gloo.settle(self._dead)
        self._bury()
