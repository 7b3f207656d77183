"""One line on stderr about something that takes long and has nothing to show."""

from __future__ import annotations

import subprocess
import sys
import time
from types import TracebackType


class Announcement:
    """Says `text` when it begins, how long it has taken meanwhile, and how long it took.

    On a terminal the line is rewritten every second; elsewhere a line is added every 30 s.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Announcement:
        self._start = time.monotonic()
        self._show(f"{self.text} …")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ended = "done" if kind is None else "gave up"
        self._show(f"{self.text}: {ended} after {self._elapsed_s():.0f} s", last=True)

    def wait(self, process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
        """The process's exit code; None when it has not ended after `timeout_s`."""
        step_s = 1.0 if self._live else 30.0
        while (left_s := timeout_s - self._elapsed_s()) > 0:
            try:
                return process.wait(timeout=min(step_s, left_s))
            except subprocess.TimeoutExpired:
                self._show(f"{self.text}: {self._elapsed_s():.0f} s so far")
        return None

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def _show(self, line: str, *, last: bool = False) -> None:
        if self._live:
            sys.stderr.write(f"\r\x1b[2K{line}" + ("\n" if last else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()
