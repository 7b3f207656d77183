"""The film of a run's memory: every change of live bytes in order, as plain data, and cuts of it.

    film = of(account)              # an Account with a history, with stacks or without
    film.cut("backward")            # what was live, by category, in so many moments of a phase

A film pickles, and reading it needs no torch: `snapshot` and `timeline` write it for the viewers
that people have, `simulator.picture` draws it. Its clock counts changes, not seconds.
"""

from __future__ import annotations

import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from ds_llama.measure.phases import CATEGORIES

if TYPE_CHECKING:
    from ds_llama.measure.accounting import Account


class Frame(NamedTuple):
    """A line of Python, innermost first in a stack."""

    filename: str
    line: int
    name: str


class Event(NamedTuple):
    """A storage got `delta_bytes` more. place: "device" or "host". stack: an index, or None."""

    storage: int
    place: str
    category: str
    delta_bytes: int
    stack: int | None


class Span(NamedTuple):
    """A phase: the events `start` up to `stop` happened in it. step: from 1; 0 before the first."""

    name: str
    start: int
    stop: int
    step: int


Moment = Mapping[str, Mapping[str, int]]
"""{place: {category: bytes}}"""


@dataclass(frozen=True)
class Film:
    """All events in order; `stacks` are shared between them, `spans` in the order of their ends."""

    events: Sequence[Event]
    spans: Sequence[Span]
    stacks: Sequence[tuple[Frame, ...]] = ()

    @property
    def last_step(self) -> int:
        return max((span.step for span in self.spans), default=0)

    def span(self, name: str, step: int) -> Span:
        """The phase of that name in that step; of several (micro-batches) the one that peaks."""
        same = [span for span in self.spans if (span.name, span.step) == (name, step)]
        return max(same, key=lambda span: max(_totals(self.cut(span, 1))))

    def cut(self, span: Span, moments: int) -> list[Moment]:
        """`span` in so many equal parts, of each the moment at which most was live in all."""
        live = _Live(self.events[: span.start])
        edges = [span.start + (span.stop - span.start) * i // moments for i in range(moments + 1)]
        found = []
        for start, stop in pairwise(edges):
            best, most = live.copy(), live.total
            for event in self.events[start:stop]:
                live.add(event)
                if live.total > most:
                    best, most = live.copy(), live.total
            found.append(best)
        return found


class _Live:
    def __init__(self, events: Iterable[Event]) -> None:
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.total = 0
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        self.bytes[event.place, event.category] += event.delta_bytes
        self.total += event.delta_bytes

    def copy(self) -> Moment:
        return {
            place: {category: self.bytes[place, category] for category in CATEGORIES}
            for place in ("device", "host")
        }


def _totals(moments: Sequence[Moment]) -> list[int]:
    return [sum(sum(split.values()) for split in moment.values()) for moment in moments]


def of(account: Account, steps: Sequence[int] = ()) -> Film:
    """The film of an Account that keeps a history.

    steps: how many of `account.edges` there were when each step began. Call it before the account's
    process is gone: stacks are looked up in code that must still be loaded.
    """
    changes = list(account.history())
    stacks, index = _stacks([change.stack for change in changes])
    events = [
        Event(
            change.storage,
            "device" if change.device == account.accelerator else "host",
            change.category,
            change.delta_bytes,
            at,
        )
        for change, at in zip(changes, index, strict=True)
    ]
    return Film(events, list(_spans(account.edges, steps)), stacks)


def _spans(edges: Sequence[tuple[int, str, bool]], steps: Sequence[int]) -> Iterator[Span]:
    open_at: list[int] = []
    for number, (at, name, begins) in enumerate(edges):
        if begins:
            open_at.append(at)
        else:
            yield Span(name, open_at.pop(), at, sum(begun <= number for begun in steps))


def _stacks(tracebacks: Sequence[Any]) -> tuple[list[tuple[Frame, ...]], list[int | None]]:
    """Every stack once, and which one each of the tracebacks is."""
    given = {id(traceback): traceback for traceback in tracebacks if traceback is not None}
    if not given:
        return [], [None] * len(tracebacks)
    from torch._C._profiler import symbolize_tracebacks

    known: dict[tuple[Frame, ...], int] = {}
    numbers: dict[int, int] = {}
    for key, frames in zip(
        given, symbolize_tracebacks([t.tb for t in given.values()]), strict=True
    ):
        numbers[key] = known.setdefault(_told(frames), len(known))
    return list(known), [None if t is None else numbers[id(t)] for t in tracebacks]


# Whose lines say nothing of why a tensor was made: torch's dispatch, who counts, who starts.
_SILENT = ("ds_llama/measure/", "ds_llama/simulator/", "torch/", "python/", "<frozen")
_LIBRARY = PurePath(sysconfig.get_path("stdlib"))


def _told(frames: Iterable[Mapping[str, Any]]) -> tuple[Frame, ...]:
    """The package's, the model's and DeepSpeed's lines; all, where there are none."""
    every = [Frame(_short(f["filename"]), f["line"], f["name"]) for f in frames]
    kept = tuple(frame for frame in every if not frame.filename.startswith(_SILENT))
    return kept or tuple(every)


def _short(filename: str) -> str:
    """From the last folder of packages on, or of ours: the same on every machine."""
    parts = PurePath(filename).parts
    for root in ("site-packages", "ds_llama"):
        if root in parts:
            at = len(parts) - 1 - parts[::-1].index(root)
            return "/".join(parts[at + (root == "site-packages") :])
    if PurePath(filename).is_relative_to(_LIBRARY):
        return f"python/{PurePath(filename).relative_to(_LIBRARY)}"
    return filename
