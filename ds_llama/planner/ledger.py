"""Bytes that are held now and were held at the worst moment, on the device and in host memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from ds_llama.planner.terms import PhaseMemory, Span, Terms

_Entries = dict[str, int]


@dataclass(frozen=True)
class Stretch:
    """Operations on the device in short: what their worst moment adds to what was held before them,
    and what the end differs from it, in all (`rise`, `fall`) and by category."""

    rise: int
    fall: int
    worst: tuple[tuple[str, int], ...]
    rest: tuple[tuple[str, int], ...]


class Ledger:
    """What a rank holds while a run is played through; every entry is one tensor or many alike.

    `hold` adds bytes of a category, `free` takes them away, `peek` does both. A `phase` ends with
    its peaks written down; they are of device, host and both together, each at its own moment.
    """

    def __init__(self) -> None:
        self.phases: dict[str, PhaseMemory] = {}
        self._device: _Entries = dict.fromkeys((field.name for field in fields(Terms)), 0)
        self._host: _Entries = dict(self._device)
        self.on_device = self._on_host = self._locked = 0
        self.pinned = 0  # the most that was page-locked at once
        self._device_peak = self._host_peak = self._total_peak = 0
        self._begin()

    def hold(self, category: str, size: int, *, host: bool = False) -> None:
        """`size` more bytes of `category`."""
        if host:
            self._host[category] += size
            self._on_host += size
        else:
            self._device[category] += size
            self.on_device += size
        self._rising = True

    def free(self, category: str, size: int, *, host: bool = False) -> None:
        """`size` bytes less of `category`."""
        if self._rising:
            self._mark()
        if host:
            self._host[category] -= size
            self._on_host -= size
        else:
            self._device[category] -= size
            self.on_device -= size

    def peek(self, category: str, size: int, *, host: bool = False) -> None:
        """Held and freed at once: what an operation needs while it runs."""
        self.hold(category, size, host=host)
        self.free(category, size, host=host)

    def pin(self, category: str, size: int) -> None:
        """Held on the host and page-locked: a copy of what was made in pageable memory."""
        self.hold("other", size, host=True)
        self.lock(category, size)
        self.free("other", size, host=True)

    def lock(self, category: str, size: int) -> None:
        """Held on the host, made page-locked: no copy."""
        self.hold(category, size, host=True)
        self._locked += size
        self.pinned = max(self.pinned, self._locked)

    def unlock(self, category: str, size: int) -> None:
        """Page-locked bytes less of `category`."""
        self.free(category, size, host=True)
        self._locked -= size

    def held(self, category: str, size: int, *, host: bool = False) -> _Held:
        """Held as long as the context is open."""
        return _Held(self, category, size, host)

    def stretch(self) -> Stretch:
        """What has happened on the device since this ledger began, empty."""
        self._mark()
        worst, now = self._device_worst, self._device
        rest = [(name, size - worst[name]) for name, size in now.items() if size != worst[name]]
        return Stretch(
            self._device_peak,
            self.on_device - self._device_peak,
            tuple((name, size) for name, size in worst.items() if size),
            tuple(rest),
        )

    def replay(self, part: Stretch) -> None:
        """All that `part` holds and frees, and its worst moment."""
        for category, size in part.worst:
            self._device[category] += size
        self.on_device += part.rise
        self._mark()
        for category, size in part.rest:
            self._device[category] += size
        self.on_device += part.fall

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record a phase; one that comes again under the same name widens its peaks."""
        self._begin()
        yield
        self._mark()
        device, host = Terms(**self._device), Terms(**self._host)
        one, other = self._total_worst
        spans = {
            "device": Span(device, Terms(**self._device_worst)),
            "host": Span(host, Terms(**self._host_worst)),
            "total": Span(device + host, Terms(**one) + Terms(**other)),
        }
        before = self.phases.get(name)
        if before is not None:
            spans = {place: _wider(getattr(before, place), span) for place, span in spans.items()}
        self.phases[name] = PhaseMemory(name, **spans)

    def _begin(self) -> None:
        self._device_peak, self._device_worst = self.on_device, self._device.copy()
        self._host_peak, self._host_worst = self._on_host, self._host.copy()
        self._total_peak = self.on_device + self._on_host
        self._total_worst = (self._device_worst, self._host_worst)
        self._rising = False

    def _mark(self) -> None:
        """Write down what is held if it never was more: done before anything is freed."""
        self._rising = False
        if self.on_device > self._device_peak:
            self._device_peak, self._device_worst = self.on_device, self._device.copy()
        if self._on_host > self._host_peak:
            self._host_peak, self._host_worst = self._on_host, self._host.copy()
        if self.on_device + self._on_host > self._total_peak:
            self._total_peak = self.on_device + self._on_host
            self._total_worst = (self._device.copy(), self._host.copy())


class _Held:
    """`Ledger.held`; a class, for a generator's context takes several times as long."""

    def __init__(self, ledger: Ledger, category: str, size: int, host: bool) -> None:
        self.ledger, self.category, self.size, self.host = ledger, category, size, host

    def __enter__(self) -> None:
        self.ledger.hold(self.category, self.size, host=self.host)

    def __exit__(self, *_: object) -> None:
        self.ledger.free(self.category, self.size, host=self.host)


def _wider(before: Span, span: Span) -> Span:
    return Span(span.now, max(before.peak, span.peak, key=lambda terms: terms.total))
