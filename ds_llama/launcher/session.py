"""A child that leads a session of its own, from its start until nothing of the session is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import IO

from ds_llama.launcher.processes import end_session, handling, kill_session

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Session:
    """Signals to this process end it: the first one is handed to `ask`, so that it saves.

    Another one ends the whole session at once, and so do `patience_s` after the first. SIGUSR1
    announces an end, and gives all the time that it takes; what comes after it counts as a first.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        ask: Callable[[subprocess.Popen[bytes], int], None],
        patience_s: float,
    ) -> None:
        self._argv, self._env, self._ask = argv, env, ask
        self.signum: int | None = None
        self._asked: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._timer = threading.Timer(patience_s, self._kill)
        self._timer.daemon = True

    def run(
        self,
        *,
        output: IO[bytes] | None = None,
        timeout_s: float | None = None,
        in_child: Callable[[], None] | None = None,
    ) -> int:
        """Start, wait, clean up; the code as Popen has it. `in_child` is called there first.

        Raises subprocess.TimeoutExpired, when nothing is left either.
        """
        sys.stdout.flush()
        with handling(SIGNALS, self._receive):
            self._child = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=in_child,
            )
            try:
                for signum in self._asked:  # before it was there
                    self._pass_on(signum)
                return self._child.wait(timeout_s)
            finally:
                self._timer.cancel()
                end_session(self._child.pid)
                self._child.wait()

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        announced = self._asked == [signal.SIGUSR1]
        if self._asked and not announced:
            self._kill()
            return
        if announced and signum == signal.SIGUSR1:
            return
        self.signum = self.signum or signum
        self._asked.append(signum)
        if signum != signal.SIGUSR1:
            self._timer.start()
        self._pass_on(signum)

    def _pass_on(self, signum: int) -> None:
        if self._child is not None:
            with suppress(OSError):
                self._ask(self._child, signum)

    def _kill(self) -> None:
        if self._child is not None:
            kill_session(self._child.pid)
