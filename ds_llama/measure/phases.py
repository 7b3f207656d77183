"""What an account says of a phase: bytes at its end and at its peak, split by what they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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

Split = Mapping[str, int]


def _nothing() -> Split:
    return dict.fromkeys(CATEGORIES, 0)


@dataclass(frozen=True)
class Bytes:
    """Bytes that are live now and the most that were live at once, each with its split.

    `now` and `peak` have a value for every category; `peak` is the split at the moment of the peak.
    """

    now_bytes: int = 0
    peak_bytes: int = 0
    now: Split = field(default_factory=_nothing, compare=False, repr=False)
    peak: Split = field(default_factory=_nothing, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "now_bytes": self.now_bytes,
            "peak_bytes": self.peak_bytes,
            "now": dict(self.now),
            "peak": dict(self.peak),
        }


@dataclass(frozen=True)
class Phase:
    """One phase: bytes at its end and its peak, by device type; `total` has a peak of its own.

    process: what the allocator and the operating system say, where the account was asked for it.
    """

    name: str
    by_type: dict[str, Bytes]
    total: Bytes
    accelerator: str
    process: dict[str, int | None] | None = None

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
        found = {"name": self.name, **{key: part.to_dict() for key, part in parts.items()}}
        return found if self.process is None else {**found, "process": self.process}


def merged(phases: Sequence[Phase]) -> list[Phase]:
    """Phases of one name, as of the micro-batches of a step, as one: their peak, the last's end."""
    names = dict.fromkeys(phase.name for phase in phases)
    return [_one([phase for phase in phases if phase.name == name]) for name in names]


def _one(same: Sequence[Phase]) -> Phase:
    last = same[-1]
    by_type = {key: _joined([p.by_type.get(key, Bytes()) for p in same]) for key in last.by_type}
    total = _joined([phase.total for phase in same])
    return replace(last, by_type=by_type, total=total, process=_process([p.process for p in same]))


def _process(found: Sequence[dict[str, int | None] | None]) -> dict[str, int | None] | None:
    last = found[-1]
    if last is None:
        return None

    def value(key: str) -> int | None:
        known = [n for p in found if p is not None and (n := p[key]) is not None]
        return max(known) if "peak" in key and known else last[key]

    return {key: value(key) for key in last}


def largest(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One phase's `to_dict()` of several ranks as one: every figure is the largest of any rank.

    A split goes with its sum: it is that of the rank that holds most.
    """
    found: dict[str, Any] = {"name": ranks[0]["name"]}
    for place in ("device", "host", "total"):
        parts = [rank[place] for rank in ranks]
        found[place] = {}
        for what in ("now", "peak"):
            most = max(parts, key=lambda part: part[f"{what}_bytes"])
            found[place] |= {f"{what}_bytes": most[f"{what}_bytes"], what: most[what]}
    if "process" in ranks[0]:
        known = [rank["process"] for rank in ranks]
        found["process"] = {
            key: max((p[key] for p in known if p[key] is not None), default=None)
            for key in known[0]
        }
    return found


def _joined(parts: Sequence[Bytes]) -> Bytes:
    largest = max(parts, key=lambda part: part.peak_bytes)
    return replace(parts[-1], peak_bytes=largest.peak_bytes, peak=largest.peak)
