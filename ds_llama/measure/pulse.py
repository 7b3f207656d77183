"""Where this process is, for whoever watches it from a thread: a count of beats, phase and step.

A beat is a phase that begins or ends. Ranks of one run go through the same phases, so the one that
has beaten least is the one that the others wait for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SLOW = frozenset({"start", "construct", "initialise", "resume", "evaluation", "save", "export"})
"""Phases that may take long without a beat; so may the first step, which compiles."""


class Pulse:
    """What is written is a few attributes: a beat costs well below a microsecond."""

    def __init__(self) -> None:
        self.beats, self.step, self.phase = 0, 0, "start"
        self._first = True
        self._thread = threading.main_thread().ident
        self.since = time.monotonic()

    @property
    def slow(self) -> bool:
        """Whether silence may last longer here than within a step."""
        return self._first or self.phase in SLOW

    def of_this_thread(self) -> None:
        """The thread that trains is this one; no other's phases count."""
        self._thread = threading.get_ident()

    def beat(self, phase: str) -> None:
        """A phase begins, or goes on after another within it."""
        if threading.get_ident() != self._thread:
            return
        self.phase, self.since = phase, time.monotonic()
        self.beats += 1

    def alive(self) -> None:
        """A long phase gets on: the silence begins anew, without a beat."""
        if threading.get_ident() == self._thread:
            self.since = time.monotonic()

    def at_step(self, step: int, *, first: bool) -> None:
        """A step begins; `first`: of this process."""
        self.step, self._first = step, first
        self.beat("loop")


HERE = Pulse()


@contextmanager
def within(phase: str) -> Iterator[None]:
    """A phase of this process; phases may nest."""
    before = HERE.phase
    HERE.beat(phase)
    try:
        yield
    finally:
        HERE.beat(before)
