"""A film of memory as the snapshot of a CUDA allocator, which pytorch.org/memory_viz opens.

The same dict as `torch.cuda.memory._snapshot()` gives: `device_traces` with the events of device 0
and, as device 1, of the host; `segments` with what is live at the end. A storage's address is made
up, first fit in one segment; what is true is what is live, how large, for what, and by which lines.

Three things that the viewer wants (pytorch torch/utils/viz/MemoryViz.js, 2025):
  - events with categories are coloured by them, if one of the categories is "unknown": without one
    it dies of a misspelt name. What is "other" here is called so.
  - pickles of protocol 2 to 4.
  - blocks that fill their segment.
"""

from __future__ import annotations

import bisect
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ds_llama.measure.film import Event, Film

PLACES = ("device", "host")
PROTOCOL = 4
_BASE = 1 << 40
_ALIGNED = 512  # bytes, as CUDA's caching allocator rounds (c10/cuda/CUDACachingAllocator.cpp)
_SEGMENT = 2 << 20
_NO_FRAMES: list[dict[str, Any]] = []


def write(film: Film, path: Path) -> None:
    """Write the film as a pickled snapshot."""
    path.write_bytes(pickle.dumps(snapshot(film), protocol=PROTOCOL))


def snapshot(film: Film) -> dict[str, Any]:
    """The film as `torch.cuda.memory._snapshot()` would give it."""
    stacks = [[frame._asdict() for frame in stack] for stack in film.stacks]
    traces: list[list[dict[str, Any]]] = []
    segments: list[dict[str, Any]] = []
    for device, place in enumerate(PLACES):
        heap = _Heap(device, stacks)
        for time, event in enumerate(film.events):
            if event.place == place:
                heap.change(time, event)
        traces.append(heap.trace())
        segments += heap.segments()
    return {"device_traces": traces, "segments": segments, "external_annotations": []}


class _Heap:
    """Addresses for storages, first fit, and the events that gave and took them."""

    def __init__(self, device: int, stacks: Sequence[list[dict[str, Any]]]) -> None:
        self._device, self._stacks = device, stacks
        self._events: list[dict[str, Any]] = []
        self._blocks: dict[int, tuple[int, int, Event]] = {}  # storage -> address, bytes, event
        self._holes: list[tuple[int, int]] = []  # (address, bytes), by address, never adjacent
        self._end = 0

    def change(self, time: int, event: Event) -> None:
        """A storage that grows or shrinks is freed and allocated anew."""
        size = event.delta_bytes
        if event.storage in self._blocks:
            address, before, first = self._blocks.pop(event.storage)
            size += before
            for action in ("free_requested", "free_completed"):
                self._tell(action, address, before, time, first)
            self._give(address, _rounded(before))
        if size > 0:
            address = self._take(_rounded(size))
            self._blocks[event.storage] = (address, size, event)
            self._tell("alloc", address, size, time, event)

    def _tell(self, action: str, address: int, size: int, time: int, event: Event) -> None:
        self._events.append(
            {
                "action": action,
                "addr": _BASE + address,
                "size": size,
                "stream": 0,
                "time_us": time,
                "frames": self._frames(event),
                "category": "unknown" if event.category == "other" else event.category,
            }
        )

    def _frames(self, event: Event) -> list[dict[str, Any]]:
        return _NO_FRAMES if event.stack is None else self._stacks[event.stack]

    def _take(self, size: int) -> int:
        for index, (address, free) in enumerate(self._holes):
            if free >= size:
                rest = [(address + size, free - size)] if free > size else []
                self._holes[index : index + 1] = rest
                return address
        address = self._end
        if self._holes and sum(self._holes[-1]) == self._end:
            address, _ = self._holes.pop()
        self._end = address + size
        return address

    def _give(self, address: int, size: int) -> None:
        index = bisect.bisect(self._holes, (address, size))
        if index < len(self._holes) and self._holes[index][0] == address + size:
            size += self._holes.pop(index)[1]
        if index and sum(self._holes[index - 1]) == address:
            index -= 1
            start, before = self._holes.pop(index)
            address, size = start, size + before
        self._holes.insert(index, (address, size))

    @property
    def _total(self) -> int:
        return -(-self._end // _SEGMENT) * _SEGMENT

    def trace(self) -> list[dict[str, Any]]:
        """The segment, as large as it ever gets, and then what happens in it."""
        if not self._events:
            return []
        segment = {
            "action": "segment_alloc",
            "addr": _BASE,
            "size": self._total,
            "stream": 0,
            "time_us": 0,
            "frames": _NO_FRAMES,
            "category": "unknown",
        }
        return [segment, *self._events]

    def segments(self) -> list[dict[str, Any]]:
        if not self._events:
            return []
        live = sorted(self._blocks.values(), key=lambda block: block[0])
        requested = sum(size for _, size, _ in live)
        allocated = sum(_rounded(size) for _, size, _ in live)
        return [
            {
                "device": self._device,
                "address": _BASE,
                "total_size": self._total,
                "allocated_size": allocated,
                "active_size": allocated,
                "requested_size": requested,
                "stream": 0,
                "segment_type": "large",
                "segment_pool_id": (0, 0),
                "is_expandable": False,
                "frames": _NO_FRAMES,
                "blocks": list(self._tiles(live)),
            }
        ]

    def _tiles(self, live: Iterable[tuple[int, int, Event]]) -> Iterable[dict[str, Any]]:
        at = 0
        for address, size, event in live:
            if address > at:
                yield _hole(at, address - at)
            yield {
                "address": _BASE + address,
                "size": _rounded(size),
                "requested_size": size,
                "state": "active_allocated",
                "frames": self._frames(event),
            }
            at = address + _rounded(size)
        if self._total > at:
            yield _hole(at, self._total - at)


def _hole(address: int, size: int) -> dict[str, Any]:
    return {
        "address": _BASE + address,
        "size": size,
        "requested_size": 0,
        "state": "inactive",
        "frames": _NO_FRAMES,
    }


def _rounded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
