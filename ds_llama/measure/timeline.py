"""A film of memory as a Chrome trace, which ui.perfetto.dev and chrome://tracing open.

Two processes, the device and the host, each with a counter a category and a counter of their sum;
the lives of the largest storages, with the lines of Python that made them; and a track with the
phases as slices. The clock counts changes of memory: one is a microsecond. (Trace Event Format,
Google, 2016: counters are "C", slices "X", what overlaps "b" and "e", names "M".)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_llama.measure.film import Event, Film
from ds_llama.measure.phases import CATEGORIES
from ds_llama.units import format_bytes

_PIDS = {"device": 1, "host": 2}
_PHASES = 3
_LIVES = 1000


def write(film: Film, path: Path) -> None:
    """Write the film as one JSON object."""
    path.write_text(json.dumps(timeline(film), separators=(",", ":")) + "\n", encoding="utf-8")


def timeline(film: Film) -> dict[str, Any]:
    """The film as a Chrome trace."""
    events = [*_names(), *_phases(film), *_counters(film), *_lives(film)]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _names() -> Iterator[dict[str, Any]]:
    names = {"phases": _PHASES, "device bytes": _PIDS["device"], "host bytes": _PIDS["host"]}
    for order, (name, pid) in enumerate(names.items()):
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
        order_of = {"sort_index": order}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": order_of}
        track = {"name": "phases" if pid == _PHASES else "largest storages"}
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": 1, "args": track}


def _phases(film: Film) -> Iterator[dict[str, Any]]:
    for span in film.spans:
        yield {
            "ph": "X",
            "name": span.name,
            "cat": "phase",
            "pid": _PHASES,
            "tid": 1,
            "ts": span.start,
            "dur": span.stop - span.start,
            "args": {"step": span.step},
        }


def _counters(film: Film) -> Iterator[dict[str, Any]]:
    live: Counter[tuple[str, str]] = Counter()
    for place in _PIDS:
        for category in ("total", *CATEGORIES):
            yield _counter(0, place, category, 0)
    for time, event in enumerate(film.events, start=1):
        for category in (event.category, "total"):
            live[event.place, category] += event.delta_bytes
            yield _counter(time, event.place, category, live[event.place, category])


def _lives(film: Film) -> Iterator[dict[str, Any]]:
    """A slice from a storage's first byte to its last, of those that are largest at any time."""
    largest: Counter[int] = Counter()
    now: Counter[int] = Counter()
    spans: dict[int, tuple[int, int, Event]] = {}
    for time, event in enumerate(film.events, start=1):
        now[event.storage] += event.delta_bytes
        largest[event.storage] = max(largest[event.storage], now[event.storage])
        begin, _, first = spans.get(event.storage, (time, 0, event))
        spans[event.storage] = begin, time if now[event.storage] == 0 else 0, first
    for storage, size in largest.most_common(_LIVES):
        begin, end, first = spans[storage]
        stack = film.stacks[first.stack] if first.stack is not None else ()
        about = {
            "cat": first.category,
            "name": f"{first.category} {format_bytes(size)}",
            "id": storage,
            "pid": _PIDS[first.place],
            "tid": 1,
        }
        lines = "\n".join(f"{frame.filename}:{frame.line} {frame.name}" for frame in stack)
        yield {"ph": "b", "ts": begin, "args": {"bytes": size, "made by": lines}, **about}
        yield {"ph": "e", "ts": end or len(film.events), **about}


def _counter(time: int, place: str, category: str, size: int) -> dict[str, Any]:
    return {
        "ph": "C",
        "name": category,
        "pid": _PIDS[place],
        "tid": 0,
        "ts": time,
        "args": {"bytes": size},
    }
