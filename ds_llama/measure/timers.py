"""Wall-clock time of steps and of their parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """Splits steps into data wait, forward, backward and step.

        timer = StepTimer(synchronize_of("cuda"))
        timer.open()
        with timer.part("data_wait"): ...
        with timer.part("forward"): ...
        timer.step()
        window = timer.close()       # synchronises, and opens the next window

    `synchronize` is called at the edges of windows and never inside: within a window it would make
    the device wait for the host, and the timer would measure itself.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._synchronize, self._clock = synchronize, clock
        self._parts: dict[str, float] = {}
        self._steps = 0
        self._start: float | None = None

    def open(self) -> None:
        """Start a window here: what came before (evaluation, a checkpoint) is not counted."""
        self._synchronize()
        self._parts, self._steps = {}, 0
        self._start = self._clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = self._clock()
        try:
            yield
        finally:
            self._parts[name] = self._parts.get(name, 0.0) + self._clock() - begin

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


def synchronize_of(device: torch.device | str) -> Callable[[], None]:
    """What waits for the device; a CPU has nothing to wait for."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.synchronize
    return lambda: None
