"""A rank below a process of ours, which stays for its end and asks it to end."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from types import FrameType


class Child:
    """In a session of its own: whoever signals a whole group of processes means us alone."""

    def __init__(self) -> None:
        """From here on SIGTERM, SIGINT and SIGUSR1 to this process ask the child to end."""
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False
        for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._ask)

    def run(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        started: Callable[[int], None] = lambda pid: None,
    ) -> int:
        """To its end; its code, minus n for signal n. `started` is told the pid."""
        self._process = subprocess.Popen(words, env=env, start_new_session=True)
        started(self._process.pid)
        if self._asked:  # before it was there
            self._process.terminate()
        return self._process.wait()

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        """Once: a second signal would end a rank that saves at the first."""
        if self._process is not None and not self._asked:
            self._process.terminate()
        self._asked = True
