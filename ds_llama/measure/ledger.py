"""Every change of live bytes in order, with peaks, from which a peak's split is read afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ds_llama.measure.labels import Live
from ds_llama.measure.phases import CATEGORIES, Bytes

TOTAL = "total"


@dataclass(frozen=True)
class Change:
    """One entry of a history: a storage was made, grew, shrank or died.

    storage: the same number for all changes of one storage. category: what the storage turned out
    to be for. stack: `CapturedTraceback` of when it was first seen, or None.
    """

    storage: int
    device: str
    category: str
    delta_bytes: int
    stack: Any


class _Gauge:
    """Bytes of one device type: now, the peak of the present phase, and its place in the log."""

    __slots__ = ("at", "now", "peak")

    def __init__(self) -> None:
        self.now = self.peak = self.at = 0


class Ledger:
    """Bytes by device type and in total. The log is kept while a phase is open, or always."""

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self._total = _Gauge()
        self._gauges: dict[str, _Gauge] = {TOTAL: self._total}
        self._outer: list[dict[str, tuple[int, int]]] = []
        self._log: list[Live] = []
        self._deltas: list[int] = []

    def __len__(self) -> int:
        return len(self._log)

    def change(self, live: Live, delta: int) -> None:
        """Write that a storage has `delta` bytes more than before."""
        gauge = self._gauges.get(live.device)
        if gauge is None:
            gauge = self._gauges[live.device] = _Gauge()
        if self._outer or self.keep:
            self._log.append(live)
            self._deltas.append(delta)
        for each in (gauge, self._total):
            each.now += delta
            if each.now > each.peak:
                each.peak, each.at = each.now, len(self._log)

    def bytes(self, key: str) -> Bytes:
        """Now, and the peak since the beginning."""
        gauge = self._gauges.get(key, _Gauge())
        return Bytes(gauge.now, max(gauge.peak, *(p.get(key, (0, 0))[0] for p in self._outer), 0))

    def begin(self) -> None:
        """Open a phase: peaks start at what is live now."""
        self._outer.append({key: (gauge.peak, gauge.at) for key, gauge in self._gauges.items()})
        for gauge in self._gauges.values():
            gauge.peak, gauge.at = gauge.now, len(self._log)

    def end(self, lives: Iterable[Live]) -> dict[str, Bytes]:
        """Close the innermost phase; what it came to by device type and in total."""
        splits = {key: [0] * len(CATEGORIES) for key in self._gauges}
        for live in lives:
            splits[live.device][live.category] += live.size
            splits[TOTAL][live.category] += live.size
        found = {key: self._described(key, split) for key, split in splits.items()}
        outer = self._outer.pop()
        for key, gauge in self._gauges.items():
            peak, at = outer.get(key, (0, 0))
            if peak >= gauge.peak:
                gauge.peak, gauge.at = peak, at
        if not self._outer and not self.keep:
            self._log, self._deltas = [], []
        return found

    def _described(self, key: str, now: list[int]) -> Bytes:
        """`now` without what has changed since the peak, from the last change backwards."""
        gauge, peak = self._gauges[key], list(now)
        for index in range(len(self._log) - 1, gauge.at - 1, -1):
            live = self._log[index]
            if key in (TOTAL, live.device):
                peak[live.category] -= self._deltas[index]
        named = [dict(zip(CATEGORIES, split, strict=True)) for split in (now, peak)]
        return Bytes(gauge.now, gauge.peak, *named)

    def history(self) -> Iterator[Change]:
        """Every change in order."""
        for live, delta in zip(self._log, self._deltas, strict=True):
            yield Change(live.serial, live.device, CATEGORIES[live.category], delta, live.stack)
