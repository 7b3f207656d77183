"""Runs that another program starts and ends: mpirun. Preflight and exit codes are ours.

ds-llama train --launcher mpich     signals, exit code, what is left over here
  └ mpirun ── ssh ── its proxy on each host
                       └ launcher.mpi_rank          a rank each
                           └ ds_llama train
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import FrameType, ModuleType

from ds_llama.launcher.addresses import hostname
from ds_llama.launcher.job import Job
from ds_llama.launcher.processes import end_session, handling, kill_session
from ds_llama.launcher.supervisor import Outcome
from ds_llama.launcher.transports import mpich, openmpi

LAUNCHERS: dict[str, ModuleType] = {"openmpi": openmpi, "mpich": mpich}
SAVE_S = 40.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def launch(job: Job, launcher: str) -> Outcome:
    """How the job ended: with the code of its first rank that failed, 128 + n for signal n.

    The first SIGINT or SIGTERM has the ranks save, for which they have 40 s; a second one ends
    everything at once. mpirun ends when this process does. Raises MachineError without the right
    mpirun here, and CallError for hosts that it cannot take.
    """
    transport = LAUNCHERS[launcher]
    transport.require()
    [argv] = transport.commands(with_master(job))
    mpirun = _Mpirun(argv, {**os.environ, **transport.environment(job)})
    code = mpirun.run()
    return Outcome(code, signum=mpirun.signum)


def with_master(job: Job) -> Job:
    """The job with the first host's name for the place where its ranks meet.

    And a port at random among those that no system gives to clients: nobody was asked there.
    """
    alone = len(job.hosts) == 1
    address = "127.0.0.1" if alone else hostname(job.hosts[0])
    return job.with_master(address, random.randint(20000, 32000))


class _Mpirun:
    """One child and its session."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self._argv, self._env = argv, env
        self.signum: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._timer = threading.Timer(SAVE_S, self._kill)
        self._timer.daemon = True

    def run(self) -> int:
        """Start, wait, clean up; the exit code as a shell would give it."""
        sys.stdout.flush()
        with handling(_SIGNALS, self._receive):
            self._child = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
            try:
                if self.signum is not None:
                    self._child.send_signal(signal.SIGUSR1)
                code = self._child.wait()
            finally:
                self._timer.cancel()
                end_session(self._child.pid)
                self._child.wait()
        if self.signum is not None:
            return 128 + self.signum
        return 128 - code if code < 0 else code

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            self._kill()
            return
        self.signum = signum
        self._timer.start()
        if self._child is not None:
            # Which mpirun passes on, and `mpi_rank` makes a SIGTERM of.
            with suppress(OSError):
                self._child.send_signal(signal.SIGUSR1)

    def _kill(self) -> None:
        if self._child is not None:
            kill_session(self._child.pid)


_LIBC = ctypes.CDLL(None)


def _end_with_parent() -> None:
    """In the child: the kernel asks it to end when this process has ended, however that was."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
