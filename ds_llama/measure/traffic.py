"""What one rank moved: bytes per collective, between host and device, and to and from NVMe.

    with Traffic() as traffic:
        take_step(engine, window)
    traffic.read().collectives      # {"all_reduce": ..., "all_gather": ...}

Bytes are those of the tensors that a call was given, not of the storages under them: DeepSpeed
passes views of buffers that are many times as large. What counts as a collective's payload is the
tensor that every rank of the group ends up with a part or the whole of:

    all_reduce, reduce, broadcast   the tensor, once
    all_gather                      its output: every rank's part
    reduce_scatter, all_to_all      its input
    gather, scatter                 the full list, as the root holds it

A ring sends all of it (N - 1)/N times from each of the group's N ranks, an all_reduce twice that
(a reduce_scatter and an all_gather: Patarasuk and Yuan 2009; the ZeRO paper, section 7, counts so
too). `wire_bytes` are these, with each call's own N.

Counts and flags (int32, int64, bool) and calls of at most 16 elements a rank (norms, overflow
flags, losses) steer and carry nothing: they are `control_bytes`, and in no other number. What is
gathered into one tensor or scattered out of one is weights and gradients, however few: of a norm's
4096 weights each of 256 ranks has 16.

Works on real and fake process groups, on real and fake tensors. In a backward pass too: autograd's
threads inherit the mode. What passes no dispatcher (reads and writes of files) is told by who
does it, with `swapped`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

from ds_llama.measure.accounting import Account
from ds_llama.measure.observing import Observing

# Where a call's payload stands in its arguments, by the names in its schema.
_PAYLOAD = {
    "allreduce_": ("all_reduce", "tensors"),
    "allreduce_coalesced_": ("all_reduce", "tensors"),
    "reduce_": ("reduce", "tensors"),
    "broadcast_": ("broadcast", "tensors"),
    "allgather_": ("all_gather", "output_tensors"),
    "_allgather_base_": ("all_gather", "output_tensor"),
    "allgather_coalesced_": ("all_gather", "output_lists"),
    "allgather_into_tensor_coalesced_": ("all_gather", "outputs"),
    "reduce_scatter_": ("reduce_scatter", "input_tensors"),
    "_reduce_scatter_base_": ("reduce_scatter", "input_tensor"),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", "inputs"),
    "alltoall_": ("all_to_all", "input_tensors"),
    "alltoall_base_": ("all_to_all", "input"),
    "gather_": ("gather", "output_tensors"),
    "scatter_": ("scatter", "input_tensors"),
    "send": ("send", "tensors"),
}
# The functional ones of compiled code, which reach no c10d operation below.
_FUNCTIONAL = {
    "all_reduce": "all_reduce",
    "all_reduce_": "all_reduce",
    "broadcast": "broadcast",
    "broadcast_": "broadcast",
    "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_tensor_out": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
# Payloads that exist once a rank, so that a rank's own part of them is the N-th.
_SPREAD = frozenset(("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter"))
_CONTROL_ELEMENTS = 16
_COUNTS = frozenset((torch.int32, torch.int64, torch.bool))  # int8 is what ZeRO++ sends
_COPY = torch.ops.aten.copy_.default
_FOREACH_COPY = torch.ops.aten._foreach_copy_.default
_COPIES = frozenset((torch.ops.aten._to_copy.default, _COPY, _FOREACH_COPY))

_entered: list[Traffic] = []


@dataclass(frozen=True)
class Moved:
    """Bytes by tensor size that one rank moved. `elements`: {(kind, dtype): elements}."""

    collectives: dict[str, int] = field(default_factory=dict)
    wire_bytes: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    elements: dict[tuple[str, str], int] = field(default_factory=dict)
    control_bytes: int = 0
    to_device_bytes: int = 0
    to_host_bytes: int = 0
    nvme_read_bytes: int = 0
    nvme_write_bytes: int = 0

    @property
    def volume_bytes(self) -> int:
        """Collectives in the ZeRO paper's count: the payload, an all_reduce's twice."""
        return sum(self.collectives.values()) + self.collectives.get("all_reduce", 0)

    @property
    def host_link_bytes(self) -> int:
        return self.to_device_bytes + self.to_host_bytes

    def plus(self, before: Moved, after: Moved, times: int) -> Moved:
        """This, and `times` what was moved between `before` and `after`."""
        names = [part.name for part in fields(Moved)]
        parts = {n: [getattr(each, n) for each in (self, before, after)] for n in names}
        return Moved(**{name: _plus(*three, times) for name, three in parts.items()})

    def to_dict(self) -> dict[str, Any]:
        return {
            "collectives": dict(sorted(self.collectives.items())),
            "wire_bytes": dict(sorted(self.wire_bytes.items())),
            "calls": dict(sorted(self.calls.items())),
            "volume_bytes": self.volume_bytes,
            "control_bytes": self.control_bytes,
            "to_device_bytes": self.to_device_bytes,
            "to_host_bytes": self.to_host_bytes,
            "nvme_read_bytes": self.nvme_read_bytes,
            "nvme_write_bytes": self.nvme_write_bytes,
        }


def swapped(*, read: Iterable[torch.Tensor] = (), written: Iterable[torch.Tensor] = ()) -> None:
    """Tell whoever counts that these tensors went from or to NVMe."""
    if _entered:
        read_bytes, written_bytes = (sum(map(_bytes, tensors)) for tensors in (read, written))
        for traffic in _entered:
            traffic.nvme_read_bytes += read_bytes
            traffic.nvme_write_bytes += written_bytes


class Traffic(Observing):
    """Counts while entered; `read()` at any time, `reset()` between steps."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self._elements: Counter[tuple[str, torch.dtype]] = Counter()
        self._wire: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._control = self._to_device = self._to_host = 0
        self.nvme_read_bytes = self.nvme_write_bytes = 0

    def read(self) -> Moved:
        payload: Counter[str] = Counter()
        for (kind, dtype), elements in self._elements.items():
            payload[kind] += elements * dtype.itemsize
        return Moved(
            collectives=dict(payload),
            wire_bytes=dict(self._wire),
            calls=dict(self._calls),
            elements={
                (kind, str(dtype).removeprefix("torch.")): elements
                for (kind, dtype), elements in self._elements.items()
            },
            control_bytes=self._control,
            to_device_bytes=self._to_device,
            to_host_bytes=self._to_host,
            nvme_read_bytes=self.nvme_read_bytes,
            nvme_write_bytes=self.nvme_write_bytes,
        )

    def __enter__(self) -> Traffic:
        _entered.append(self)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        _entered.remove(self)

    def observes(self, func: Any) -> bool:
        return func.namespace in ("c10d", "_c10d_functional") or func in _COPIES

    def saw(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        if func.namespace == "c10d":
            self._collective(func, args, kwargs)
        elif func.namespace == "_c10d_functional":
            self._functional(func, args, kwargs, out)
        else:
            self._copy(func, args, out)

    @contextmanager
    def under(self, account: Account) -> Iterator[None]:
        """Count what `account` sees instead of being a mode of its own."""
        account.observe(self)
        _entered.append(self)
        yield
        _entered.remove(self)

    def _collective(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if (found := payload(func, args, kwargs)) is not None:
            self._count(*found)

    def _functional(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        kind = _FUNCTIONAL.get(func._opname)
        if kind is not None:
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
            group = dist.distributed_c10d._resolve_process_group(given["group_name"])
            self._count(kind, [out if kind == "all_gather" else given["input"]], group.size())

    def _count(self, kind: str, tensors: Sequence[torch.Tensor], ranks: int) -> None:
        if is_control(kind, tensors, ranks):
            self._control += sum(map(_bytes, tensors))
            return
        self._calls[kind] += 1
        for tensor in tensors:
            self._elements[kind, tensor.dtype] += tensor.numel()
        once = sum(map(_bytes, tensors)) * (ranks - 1) // ranks
        self._wire[kind] += 2 * once if kind == "all_reduce" else once

    def _copy(self, func: Any, args: Sequence[Any], out: Any) -> None:
        if func is _FOREACH_COPY:
            pairs = zip(args[1], args[0], strict=True)
        else:
            pairs = zip([args[1] if func is _COPY else args[0]], [out], strict=True)
        for source, target in pairs:
            # The cast comes before the link (aten/src/ATen/native/cuda/Copy.cu): target's dtype.
            way = source.device.type, target.device.type
            if way[0] == "cpu" and way[1] not in ("cpu", "meta"):
                self._to_device += _bytes(target)
            elif way[1] == "cpu" and way[0] not in ("cpu", "meta"):
                self._to_host += _bytes(target)


def payload(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[str, list[torch.Tensor], int] | None:
    """The kind of a c10d operation, its payload, and the ranks of its group.

    None of barriers, and of what a send's other end receives.
    """
    kind, name = _PAYLOAD.get(func._opname, (None, ""))
    if kind is None:
        return None
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    group = dist.ProcessGroup.unbox(given["process_group"])
    return kind, [t for t in tree_leaves(given[name]) if t is not None], group.size()


def is_control(kind: str, tensors: Sequence[torch.Tensor], ranks: int) -> bool:
    """Whether a call steers and carries nothing."""
    if all(t.dtype in _COUNTS for t in tensors):
        return True
    if kind in _SPREAD and len(tensors) == 1 < ranks:
        return False
    elements = sum(t.numel() for t in tensors)
    share = elements // ranks if kind in _SPREAD else elements
    return share <= _CONTROL_ELEMENTS


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _plus(total: Any, before: Any, after: Any, times: int) -> Any:
    if isinstance(total, dict):
        return {k: _plus(n, before.get(k, 0), after.get(k, 0), times) for k, n in total.items()}
    return total + times * (after - before)
