"""Signals that stop a run: at the next step, with a checkpoint.

Ctrl-C and SIGTERM: DeepSpeed's launcher kills its children 30 s after a signal, as Slurm does at a
job's end. The save starts at once, and a process that has not ended 25 s after the signal ends
itself: the checkpoint being written was never committed, so the newest complete one stands.
SIGUSR1 is a scheduler's announcement (`sbatch --signal=USR1@120`): there is time to save, and
whoever has announced the end comes back with SIGTERM.

Python runs its own handlers between bytecodes only, so a process that waits in a collective would
never know. The wake-up descriptor is written by the C handler, and a thread reads it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
DEADLINE_S = 25.0


class StopRequest:
    """Context in which `SIGNALS` set `signum` instead of ending the process.

    The first one is kept. The first SIGINT or SIGTERM starts the deadline; a SIGINT after another
    signal ends the process at once.
    Only the main thread can install handlers; elsewhere the context does nothing.
    """

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self.deadline_s = deadline_s
        self.signum: int | None = None
        self._timer: threading.Timer | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signum is not None

    def __enter__(self) -> StopRequest:
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._before = {s: signal.signal(s, _leave_to_the_thread) for s in SIGNALS}
            self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, daemon=True, name="signals").start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer:
            self._timer.cancel()
        if self._active:
            signal.set_wakeup_fd(self._wakeup_before)
            for signum, handler in self._before.items():
                signal.signal(signum, handler)
            os.close(self._writer)

    def _watch(self) -> None:
        while received := os.read(self._reader, 1):
            self._receive(received[0])
        os.close(self._reader)

    def _receive(self, signum: int) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            os._exit(128 + signum)
        if self._timer is None and signum != signal.SIGUSR1:
            self._timer = threading.Timer(self.deadline_s, self._give_up)
            self._timer.daemon = True
            self._timer.start()
        self.signum = self.signum or signum

    def _give_up(self) -> None:
        assert self.signum is not None
        if int(os.environ.get("RANK", 0)) == 0:
            sys.stderr.write(
                f"warning: not saved within {self.deadline_s:g} s of the signal; "
                "the last complete checkpoint stands, and a resume goes on from it\n"
            )
            sys.stderr.flush()
        os._exit(128 + self.signum)


def _leave_to_the_thread(signum: int, frame: FrameType | None) -> None:
    """A handler that does nothing: without one, Python would raise KeyboardInterrupt or die."""
