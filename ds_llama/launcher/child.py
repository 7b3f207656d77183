"""A rank below a process of ours, which stays for its end and asks it to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

_CHUNK_BYTES, _LAST_WORDS_S = 1 << 15, 5.0


def open_log(logs: str, rank: str) -> IO[bytes]:
    """A rank's file in the folder of the launch, named as DeepSpeed's launch.py names it."""
    Path(logs).mkdir(parents=True, exist_ok=True)
    return Path(logs, f"{time.strftime('%Y%m%d%H%M%S')}_rank{rank}.log").open("wb")


@contextmanager
def shown(log: IO[bytes]) -> Iterator[int]:
    """A descriptor: what is written there is shown here, and kept in the log."""
    reader, writer = os.pipe()

    def copy() -> None:
        with open(reader, "rb", buffering=0) as stream:
            while data := stream.read(_CHUNK_BYTES):
                log.write(data)
                log.flush()
                with suppress(OSError):
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()

    thread = threading.Thread(target=copy, daemon=True, name="shown")
    thread.start()
    try:
        yield writer
    finally:
        os.close(writer)
        thread.join(_LAST_WORDS_S)  # somebody below the rank may hold the other end


class Child:
    """In a session of its own: whoever signals a whole group of processes means us alone."""

    def __init__(self) -> None:
        """From here on SIGTERM, SIGINT and SIGUSR1 to this process ask the child to end."""
        self._process: subprocess.Popen[bytes] | None = None
        self.asked = False
        for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._ask)

    def run(
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        started: Callable[[int], None] = lambda pid: None,
        output: int | None = None,
    ) -> int:
        """To its end; its code, minus n for signal n. `started` is told the pid; `output`: a
        descriptor for what it prints."""
        self._process = subprocess.Popen(
            words, env=env, stdout=output, stderr=output, start_new_session=True
        )
        started(self._process.pid)
        if self.asked:  # before it was there
            self._process.terminate()
        return self._process.wait()

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        """Once: a second signal would end a rank that saves at the first."""
        if self._process is not None and not self.asked:
            self._process.terminate()
        self.asked = True
