"""The simulator's process: one import of torch and DeepSpeed, one forked child a request.

    python -m ds_llama.simulator FD      FD: a socket to `process.Simulator`

Every child changes torch and DeepSpeed for its simulation and ends with it, so no simulation sees
another's world. What happens to a child, be it an error, a signal or too long a time, comes back as
one of the package's errors.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait
from typing import NamedTuple, NoReturn

from ds_llama.errors import DsLlamaError, RunError
from ds_llama.simulator.process import Outcome
from ds_llama.simulator.result import Request, Simulation

Answer = tuple[Outcome, str | None]
"""With the traceback of an error."""

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
                connection.send((child.number, *_answer(ready, child.pid)))


def _simulate(
    simulate: Callable[[Request], Simulation],
    request: Request,
    writer: Connection,
    timeout_s: float,
    life: int,
) -> NoReturn:
    """What a child does: one simulation, and its end."""
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    answer: Answer
    try:
        answer = simulate(request), None
    except DsLlamaError as error:
        answer = error, traceback.format_exc()
    except BaseException as error:
        answer = _unknown(error), traceback.format_exc()
    writer.send(answer)
    writer.close()
    os._exit(0)


def _end_with(life: int) -> NoReturn:
    """The simulator holds the other end of this pipe, and never writes."""
    os.read(life, 1)
    os._exit(1)


def _answer(reader: Connection, pid: int) -> Answer:
    answer: Answer | None = None
    with reader, contextlib.suppress(EOFError, OSError):
        answer = reader.recv()
    _, status = os.waitpid(pid, 0)
    return answer or (_ended(os.waitstatus_to_exitcode(status)), None)


def _ended(code: int) -> RunError:
    """Why a child ended without an answer."""
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
    return RunError(
        f"the simulated run fails in a way that is not known ({said[:500]})",
        where=f"{frame.filename}:{frame.lineno} in {frame.name}",
        remedy="run again with --debug for the traceback, and report it",
    )


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
