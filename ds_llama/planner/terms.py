"""The words of a memory plan: bytes by category, at one moment, in one phase."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Terms:
    """Bytes by category; the same categories as in `measure.accounting`."""

    parameters: int = 0
    gradients: int = 0
    master: int = 0
    optimizer: int = 0
    buckets: int = 0
    activations: int = 0
    logits: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """Bytes of all categories."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, more: Terms) -> Terms:
        names = [field.name for field in fields(self)]
        return Terms(**{name: getattr(self, name) + getattr(more, name) for name in names})

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Span:
    """One kind of memory over a phase: what is there at its end, and at its worst moment."""

    now: Terms
    peak: Terms

    def to_dict(self) -> dict[str, Any]:
        return {
            "now_bytes": self.now.total,
            "peak_bytes": self.peak.total,
            "now": self.now.to_dict(),
            "peak": self.peak.to_dict(),
        }


@dataclass(frozen=True)
class PhaseMemory:
    """One phase, on the device and in host memory; `total` has a peak of its own."""

    name: str
    device: Span
    host: Span
    total: Span

    def to_dict(self) -> dict[str, Any]:
        spans = {"device": self.device, "host": self.host, "total": self.total}
        return {"name": self.name, **{key: span.to_dict() for key, span in spans.items()}}


@dataclass(frozen=True)
class Moment:
    """What is live at one moment, on the device and in host memory."""

    device: Terms = Terms()
    host: Terms = Terms()

    def __add__(self, more: Moment) -> Moment:
        return Moment(self.device + more.device, self.host + more.host)

    @property
    def total(self) -> Terms:
        return self.device + self.host


def phase(name: str, *moments: Moment) -> PhaseMemory:
    """The phase that passes through these moments; the last is its end."""

    def over(every: list[Terms]) -> Span:
        return Span(every[-1], max(every, key=lambda terms: terms.total))

    return PhaseMemory(
        name,
        over([moment.device for moment in moments]),
        over([moment.host for moment in moments]),
        over([moment.total for moment in moments]),
    )
