"""The simulator's process: one import of torch and DeepSpeed, one forked child a request.

    python -m ds_llama.simulator FD      FD: a socket to `process.Simulator`

Every child changes torch and DeepSpeed for its simulation and ends with it, so no simulation sees
another's world. What happens to a child, be it an error, a signal or too long a time, comes back as
one of the package's errors.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection, Pipe, wait
from typing import NamedTuple, NoReturn

from ds_llama.errors import DsLlamaError, RunError
from ds_llama.simulator.process import Outcome
from ds_llama.simulator.result import Request

# What a simulation comes to import, seconds of it: once here and not in every child.
AHEAD = (
    "torch._dynamo",
    "deepspeed.module_inject",
    "deepspeed.runtime.superoffload",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "ds_llama.config.rules",
)


class _Child(NamedTuple):
    number: int
    pid: int


class RemoteTraceback(Exception):
    """Cause of an error that a simulation met, for `--debug`: the traceback as text."""


def serve(connection: Connection) -> None:
    """Answer requests until whoever asks is gone."""
    import deepspeed

    from ds_llama.simulator import accelerator, session

    for name in AHEAD:
        importlib.import_module(name)
    len(deepspeed.ops.__compatible_ops__)  # found out by running a compiler, when first read
    accelerator.register_device()
    gc.collect()
    gc.freeze()  # simulations collect at every phase, and need not look at all of torch
    life = os.pipe()
    children: dict[Connection, _Child] = {}
    while True:
        for ready in wait([connection, *children]):
            assert isinstance(ready, Connection)
            if ready is connection:
                try:
                    number, request, timeout_s = connection.recv()
                except (EOFError, OSError):
                    return
                reader, writer = Pipe(duplex=False)
                pid = os.fork()
                if pid == 0:
                    os.close(life[1])
                    connection.close()
                    _simulate(session.simulate, request, writer, timeout_s, life[0])
                writer.close()
                children[reader] = _Child(number, pid)
            else:
                child = children.pop(ready)
                connection.send((child.number, _outcome(ready, child.pid)))


def _simulate(
    simulate, request: Request, writer: Connection, timeout_s: float, life: int
) -> NoReturn:  # type: ignore[no-untyped-def]
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    outcome: Outcome
    try:
        outcome = simulate(request)
    except DsLlamaError as error:
        outcome = error
    except BaseException as error:
        outcome = _unknown(error)
    writer.send(outcome)
    writer.close()
    os._exit(0)


def _end_with(life: int) -> NoReturn:
    """The simulator holds the other end of this pipe, and never writes."""
    os.read(life, 1)
    os._exit(1)


def _outcome(reader: Connection, pid: int) -> Outcome:
    try:
        outcome: Outcome = reader.recv()
    except (EOFError, OSError):
        outcome = None  # type: ignore[assignment]
    reader.close()
    _, status = os.waitpid(pid, 0)
    if outcome is not None:
        return outcome
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        return RunError(
            "the simulation took longer than its time limit",
            where="simulator",
            remedy="give it more time, or simulate fewer layers",
        )
    return RunError(
        f"the simulation was ended by signal {-code}" if code < 0 else "the simulation died",
        where="simulator",
        remedy="see whether the machine ran out of memory",
    )


def _unknown(error: BaseException) -> RunError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
    failed = RunError(
        f"the simulated run fails in a way that is not known ({said[:500]})",
        where=f"{frame.filename}:{frame.lineno} in {frame.name}",
        remedy="run again with --debug for the traceback, and report it",
    )
    failed.__cause__ = RemoteTraceback(traceback.format_exc())
    return failed


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
