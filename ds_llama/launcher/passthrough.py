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
from types import ModuleType

from ds_llama.launcher.addresses import hostname
from ds_llama.launcher.job import Job
from ds_llama.launcher.session import Session
from ds_llama.launcher.supervisor import Outcome
from ds_llama.launcher.transports import mpich, openmpi

LAUNCHERS: dict[str, ModuleType] = {"openmpi": openmpi, "mpich": mpich}
SAVE_S = 40.0
_PR_SET_PDEATHSIG = 1


def launch(job: Job, launcher: str) -> Outcome:
    """How the job ended: with the code of its first rank that failed, 128 + n for signal n.

    The first signal has the ranks save, for which they have 40 s; a second one ends everything at
    once. SIGUSR1 is no other signal here: they have it as SIGTERM. mpirun ends when this process
    does. Raises MachineError without the right mpirun here, and CallError for hosts that it cannot
    take.
    """
    transport = LAUNCHERS[launcher]
    transport.require()
    [argv] = transport.commands(with_master(job))
    mpirun = Session(argv, {**os.environ, **transport.environment(job)}, _ask, SAVE_S)
    code = mpirun.run(in_child=_end_with_parent)
    if mpirun.signum is not None:
        return Outcome(128 + mpirun.signum, signum=mpirun.signum)
    return Outcome(128 - code if code < 0 else code)


def with_master(job: Job) -> Job:
    """The job with the first host's name for the place where its ranks meet.

    And a port at random among those that no system gives to clients: nobody was asked there.
    """
    alone = len(job.hosts) == 1
    address = "127.0.0.1" if alone else hostname(job.hosts[0])
    return job.with_master(address, random.randint(20000, 32000))


def _ask(mpirun: subprocess.Popen[bytes], signum: int) -> None:
    """mpirun passes SIGUSR1 on, and `mpi_rank` makes a SIGTERM of it."""
    mpirun.send_signal(signal.SIGUSR1)


_LIBC = ctypes.CDLL(None)


def _end_with_parent() -> None:
    """In the child: the kernel asks it to end when this process has ended, however that was."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
