"""Printing that never keeps anybody waiting: a terminal may stand still (Ctrl-S), a run may not."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from typing import TextIO

_MOST_PIECES = 10_000
_LAST_WORDS_S = 10.0


class Screen:
    """A thread that prints. What does not fit in the queue is left out: the logs have all of it."""

    def __init__(self) -> None:
        self._pieces: queue.Queue[tuple[TextIO, str] | None] = queue.Queue(_MOST_PIECES)
        self._thread = threading.Thread(target=self._work, daemon=True, name="screen")
        self._thread.start()

    def out(self, text: str) -> None:
        """A piece of what rank 0 prints."""
        self._put(sys.stdout, text)

    def note(self, line: str) -> None:
        """A line about the launch."""
        self._put(sys.stderr, line + "\n")

    def close(self) -> None:
        """Print what is waiting, for as long as that goes on."""
        with contextlib.suppress(queue.Full):
            self._pieces.put(None, timeout=_LAST_WORDS_S)
            self._thread.join(_LAST_WORDS_S)

    def _put(self, stream: TextIO, text: str) -> None:
        with contextlib.suppress(queue.Full):
            self._pieces.put_nowait((stream, text))

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            stream, text = piece
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                stream.write(text)
                stream.flush()
