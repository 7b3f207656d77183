"""Bytes that are held now and were held at the worst moment, on the device and in host memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ds_llama.planner.terms import PhaseMemory, Span, Terms


class Ledger:
    """What a rank holds while a run is played through; every entry is one tensor or many alike.

    `hold` adds bytes of a category, `free` takes them away, `peek` does both. A `phase` ends with
    its peaks written down; they are of device, host and both together, each at its own moment.
    """

    def __init__(self) -> None:
        self.phases: dict[str, PhaseMemory] = {}
        self._device: dict[str, int] = {}
        self._host: dict[str, int] = {}
        self._device_sum = self._host_sum = 0
        self._device_peak = self._host_peak = self._total_peak = 0
        self._device_then: dict[str, int] = {}
        self._host_then: dict[str, int] = {}
        self._total_then: tuple[dict[str, int], dict[str, int]] = {}, {}

    def hold(self, category: str, size: int, *, host: bool = False) -> None:
        """`size` more bytes of `category`."""
        if not size:
            return
        self.free(category, -size, host=host)
        if host:
            if self._host_sum > self._host_peak:
                self._host_peak, self._host_then = self._host_sum, dict(self._host)
        elif self._device_sum > self._device_peak:
            self._device_peak, self._device_then = self._device_sum, dict(self._device)
        if self._device_sum + self._host_sum > self._total_peak:
            self._total_peak = self._device_sum + self._host_sum
            self._total_then = dict(self._device), dict(self._host)

    def free(self, category: str, size: int, *, host: bool = False) -> None:
        """`size` bytes less of `category`."""
        if host:
            self._host[category] = self._host.get(category, 0) - size
            self._host_sum -= size
        else:
            self._device[category] = self._device.get(category, 0) - size
            self._device_sum -= size

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
        return Terms(**(self._host if host else self._device))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record a phase; one that comes again under the same name widens its peaks."""
        self._begin()
        yield
        device, host = self.now(), self.now(host=True)
        both = [Terms(**then) for then in self._total_then]
        spans = {
            "device": Span(device, Terms(**self._device_then)),
            "host": Span(host, Terms(**self._host_then)),
            "total": Span(device + host, both[0] + both[1]),
        }
        before = self.phases.get(name)
        if before is not None:
            for place, span in spans.items():
                peaks = (getattr(before, place).peak, span.peak)
                spans[place] = Span(span.now, max(peaks, key=lambda terms: terms.total))
        self.phases[name] = PhaseMemory(name, **spans)

    def _begin(self) -> None:
        """Peaks start at what is held now. They are copies of dicts: this is called for each
        tensor of each module, and a Terms would take most of a plan's time."""
        self._device_peak, self._device_then = self._device_sum, dict(self._device)
        self._host_peak, self._host_then = self._host_sum, dict(self._host)
        self._total_peak = self._device_sum + self._host_sum
        self._total_then = dict(self._device), dict(self._host)
