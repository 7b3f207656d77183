"""What a rank is at, in one line on stderr."""

from __future__ import annotations

import os
import sys
import time

_LINE_EVERY_S = 10.0


class Ticker:
    """What is on: a line that is rewritten on a terminal, one now and then elsewhere."""

    def __init__(self) -> None:
        self._live, self._printed = sys.stderr.isatty(), time.monotonic()

    def __call__(self, line: str) -> None:
        """Show `line`; an empty one leaves nothing on a terminal."""
        now = time.monotonic()
        if self._live:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r\x1b[2K{line[: columns - 1]}", end="", file=sys.stderr, flush=True)
        elif line and now - self._printed >= _LINE_EVERY_S:
            print(line, file=sys.stderr, flush=True)
            self._printed = now
