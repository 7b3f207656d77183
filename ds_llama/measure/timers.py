"""Wall-clock time of steps and of their parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Window:
    """One or more steps between two synchronised edges, in seconds.

    `parts_s` holds the host's time in each part. On a device that works asynchronously the host
    runs ahead: only `total_s` is then the device's time too.
    """

    steps: int
    total_s: float
    parts_s: dict[str, float]

    @property
    def step_s(self) -> float:
        return self.total_s / self.steps if self.steps else 0.0

    def part_s(self, name: str) -> float:
        """Seconds per step in one part, 0.0 for a part that never ran."""
        return self.parts_s.get(name, 0.0) / self.steps if self.steps else 0.0


class StepTimer:
    """Splits steps into parts: data, forward, backward, step, and what is timed within them.

        timer = StepTimer(synchronize_of("cuda"))
        timer.open()
        with timer.part("data_wait"): ...
        with timer.part("forward"): ...
        timer.step()
        window = timer.close()       # synchronises, and opens the next window

    Time of a part within another belongs to the inner one. While the timer is entered, the phases
    that the package's own code marks (`measure.accounting.phase`) are parts.

    `synchronize` is called at the edges of windows and never inside: within a window it would make
    the device wait for the host, and the timer would measure itself. With `wait_at_parts` it is, at
    the edges of parts: each is then the device's own time, and nothing overlaps.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        *,
        wait_at_parts: bool = False,
    ) -> None:
        self._synchronize, self._clock = synchronize, clock
        self._wait_at_parts = wait_at_parts
        self._open_parts: list[str] = []
        self._mark = 0.0
        self._parts: dict[str, float] = {}
        self._steps = 0
        self._start: float | None = None

    def open(self) -> None:
        """Start a window here: what came before (evaluation, a checkpoint) is not counted."""
        self._synchronize()
        self._parts, self._steps = {}, 0
        self._start = self._clock()

    def __enter__(self) -> StepTimer:
        self._token = _TIMING.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _TIMING.reset(self._token)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self._open_parts.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open_parts.pop()

    def _turn(self) -> None:
        """Give the time since the last turn to the innermost part."""
        if self._wait_at_parts:
            self._synchronize()
        now = self._clock()
        if self._open_parts:
            name = self._open_parts[-1]
            self._parts[name] = self._parts.get(name, 0.0) + now - self._mark
        self._mark = now

    def step(self) -> None:
        """Count one step as done."""
        self._steps += 1

    def close(self) -> Window:
        """End the window and open the next one at the same instant."""
        assert self._start is not None, "open() comes before close()"
        self._synchronize()
        end = self._clock()
        window = Window(self._steps, end - self._start, self._parts)
        self._parts, self._steps, self._start = {}, 0, end
        return window


_TIMING: ContextVar[StepTimer | None] = ContextVar("timer", default=None)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """A part of the timer that is entered here, if one is."""
    timer = _TIMING.get()
    with timer.part(name) if timer is not None else nullcontext():
        yield


def synchronize_of(device: torch.device | str) -> Callable[[], None]:
    """What waits for the device; a CPU has nothing to wait for."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.synchronize
    return lambda: None
