"""ZeRO-3's coordinator along one micro-batch, on integers.

Its names are those of runtime/zero/partitioned_param_coordinator.py for the same things.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Trace = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Limits:
    """The five settings that decide, in elements, under DeepSpeed's names for them."""

    prefetch_bucket_size: int
    max_live_parameters: int
    max_reuse_distance: int
    param_persistence_threshold: int
    model_persistence_threshold: int


@dataclass
class _Fetch:
    """Weights fetched in one call, and those of them that no module has waited for."""

    elements: int
    buffer: int
    waiting: set[str]
    copied: bool = False


class Coordinator:
    """The coordinator's state along one micro-batch; its names for the same things."""

    def __init__(
        self,
        order: Trace,
        sizes: dict[str, int],
        limits: Limits,
        stays: set[str],
        buffers: dict[str, int] | None = None,
    ) -> None:
        self.order, self.sizes, self.limits, self.stays = order, sizes, limits, stays
        self.buffers = buffers
        self.held = self.most = self.during = 0
        self.inflight: dict[str, _Fetch] = {}
        self.released = set[str]()
        self.whole: dict[str, int] = {}
        self.queue = [(name, step) for step, names in enumerate(order) for name in names]
        self.position = 0  # of the queue's left end
        self.available = set(stays)
        self.fetched_for: dict[str, int] = {}
        self.elements = self.calls = self.live = self.most_live = 0
        # A leaf looks ahead for its weights in all that is inside of each module, the whole model
        # where the backward pass begins; another module looks into no leaf
        # (partitioned_param_coordinator.py:657, whose `recurse` is of the module that lets go).
        leaves = any(len(names) > 1 for names in order)
        own = [() if len(names) > 1 else names for names in order] if leaves else order
        self.ahead = _Ahead(own, sizes)
        every = tuple(sizes)
        self.ahead_of_leaf = _Ahead([names or every for names in order], sizes) if leaves else None

    def run(self, step: int) -> None:
        """One module: fetch it, fetch ahead, use it, drop what may be dropped."""
        names = self.order[step]
        self.released = set()
        if not names:
            self._prefetch()
            self.most = self.during = self.held
            return
        self._gather([name for name in names if name not in self.available])
        wanted = sum(self.fetched_for.get(name, -1) < step for name in names)
        for name, used_at in self.queue[self.position : self.position + wanted]:
            self.fetched_for[name] = used_at
        self.position += wanted
        self.most = self.held
        for name in names:
            self._wait(name)
        self._prefetch()
        self.during = self.held
        self.most = max(self.most, self.held)
        ahead = self.ahead if self.ahead_of_leaf is None or len(names) == 1 else self.ahead_of_leaf
        for name in names:
            if name not in self.stays and not self._comes_back(name, step + 1, ahead):
                self.released.add(name)
                self.available.discard(name)
                self.live -= self.sizes[name]
                self.held -= self.whole.pop(name, 0)

    def _gather(self, names: Sequence[str]) -> None:
        if names:
            elements = sum(self.sizes[name] for name in names)
            sent = self.sizes if self.buffers is None else self.buffers
            self.elements += sum(sent[name] for name in names)
            self.calls += 1
            self.live += elements
            self.most_live = max(self.most_live, self.live)
            self.available.update(names)
            if self.buffers is None:
                self.whole.update({name: self.sizes[name] for name in names})
                self.held += elements
                return
            buffer = sum(self.buffers[name] for name in names)
            fetch = _Fetch(elements, buffer, set(names))
            self.inflight.update(dict.fromkeys(names, fetch))
            self.held += buffer

    def _wait(self, name: str) -> None:
        fetch = self.inflight.pop(name, None)
        if fetch is None:
            return
        if fetch.elements == self.sizes[name]:  # it came alone
            self.whole[name] = fetch.buffer
            return
        if not fetch.copied:
            self.whole.update({other: self.sizes[other] for other in fetch.waiting})
            self.held += fetch.elements
            fetch.copied = True
        self.most = max(self.most, self.held)
        fetch.waiting.discard(name)
        if not fetch.waiting:
            self.held -= fetch.buffer

    def _prefetch(self) -> None:
        if self.position == len(self.queue):
            return
        room = min(self.limits.max_live_parameters - self.live, self.limits.prefetch_bucket_size)
        found: list[str] = []
        elements = 0
        while self.position < len(self.queue) and elements < room:
            name, used_at = self.queue[self.position]
            self.position += 1
            self.fetched_for[name] = max(self.fetched_for.get(name, -1), used_at)
            if name not in self.available and name not in found:
                found.append(name)
                elements += self.sizes[name]
        self._gather(found)

    def _comes_back(self, name: str, step: int, ahead: _Ahead) -> bool:
        if self.fetched_for.get(name, -1) > step:
            return True
        return ahead.distance(name, step) < self.limits.max_reuse_distance


class _Ahead:
    """How far ahead a weight is used again, in elements of the modules before that."""

    def __init__(self, order: Trace, sizes: dict[str, int]) -> None:
        of_each = (sum([sizes[name] for name in names]) if names else 0 for names in order)
        self.before = [0, *accumulate(of_each)]
        self.uses: dict[str, list[int]] = {}
        for step, names in enumerate(order):
            for name in names:
                self.uses.setdefault(name, []).append(step)

    def distance(self, name: str, step: int) -> float:
        for use in self.uses.get(name, ()):
            if use >= step:
                return self.before[use] - self.before[step]
        return math.inf
