"""Bytes that are held now and were held at the worst moment, on the device and in host memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ds_llama.planner.terms import PhaseMemory, Span, Terms

_DEVICE, _HOST, _TOTAL = "device", "host", "total"


class Ledger:
    """What a rank holds while a run is played through; every entry is one tensor or many alike.

    `hold` adds bytes of a category, `free` takes them away, `peek` does both. A `phase` ends with
    its peaks written down; they are of device, host and both together, each at its own moment.
    """

    def __init__(self) -> None:
        self.phases: dict[str, PhaseMemory] = {}
        self._now: dict[str, dict[str, int]] = {place: {} for place in (_DEVICE, _HOST)}
        self._sums = {_DEVICE: 0, _HOST: 0, _TOTAL: 0}
        self._peaks: dict[str, tuple[int, Terms]] = {}
        self._begin()

    def hold(self, category: str, size: int, *, host: bool = False) -> None:
        """`size` more bytes of `category`."""
        if size:
            place = _HOST if host else _DEVICE
            self._add(place, category, size)
            self._look(place)

    def free(self, category: str, size: int, *, host: bool = False) -> None:
        """`size` bytes less of `category`."""
        self._add(_HOST if host else _DEVICE, category, -size)

    def peek(self, category: str, size: int, *, host: bool = False) -> None:
        """Held and freed at once: what an operation needs while it runs."""
        self.hold(category, size, host=host)
        self.free(category, size, host=host)

    @contextmanager
    def held(self, category: str, size: int, *, host: bool = False) -> Iterator[None]:
        """Held as long as the context is open."""
        self.hold(category, size, host=host)
        yield
        self.free(category, size, host=host)

    def now(self, *, host: bool = False) -> Terms:
        """What is held at this moment."""
        return _terms(self._now[_HOST if host else _DEVICE])

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record a phase; one that comes again under the same name widens its peaks."""
        self._begin()
        yield
        device, host = self.now(), self.now(host=True)
        ends = {_DEVICE: device, _HOST: host, _TOTAL: device + host}
        before = self.phases.get(name)
        spans = {}
        for place, end in ends.items():
            peak = self._peaks[place][1]
            if before is not None:
                peak = max(peak, getattr(before, place).peak, key=lambda terms: terms.total)
            spans[place] = Span(end, peak)
        self.phases[name] = PhaseMemory(name, **spans)

    def _add(self, place: str, category: str, size: int) -> None:
        entries = self._now[place]
        entries[category] = entries.get(category, 0) + size
        self._sums[place] += size
        self._sums[_TOTAL] += size

    def _look(self, place: str) -> None:
        for key in (place, _TOTAL):
            if self._sums[key] > self._peaks[key][0]:
                self._record(key)

    def _record(self, key: str) -> None:
        if key == _TOTAL:
            self._peaks[key] = (self._sums[key], self.now() + self.now(host=True))
        else:
            self._peaks[key] = (self._sums[key], _terms(self._now[key]))

    def _begin(self) -> None:
        for key in (_DEVICE, _HOST, _TOTAL):
            self._record(key)


def _terms(entries: dict[str, Any]) -> Terms:
    return Terms(**entries)
