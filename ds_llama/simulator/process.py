"""Simulations in processes of their own, asked for from a process that needs no torch.

    with Simulator() as simulator:
        for outcome in simulator.outcomes([Request(run, 64), Request(run, 512)]):
            ...

The simulator imports torch and DeepSpeed once, seconds long, and forks itself for each request.
It ends with whoever started it, however that ended, and its simulations end with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from ds_llama.config.resolve import Resolved, resolve
from ds_llama.config.run import Run
from ds_llama.errors import CallError, DsLlamaError, RunError
from ds_llama.simulator import refusals
from ds_llama.simulator.result import Device, Request, Simulation

TIMEOUT_S = 3600.0
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "CROSS_RANK")

Outcome = Simulation | DsLlamaError


class RemoteTraceback(Exception):
    """Cause of an error that a simulation met, for `--debug`: the traceback as text."""


def simulate(
    run: Run,
    world_size: int = 64,
    *,
    device: Device = "sim",
    rank: int = 0,
    steps: int | None = None,
) -> Simulation:
    """What rank `rank` of `world_size` holds through `steps` optimizer steps of `run`: by default
    as many as it takes until all later ones are alike, two or three.

    The package's own construction, registration and step through the real DeepSpeed engine, over
    tensors without data; neither data nor weights are read, and nothing is written into the run's
    folder. device: "sim" tells device and host apart as on CUDA; "cpu" is a CPU run, for comparison
    with real ones. Raises CallError, ConfigErrors for a run that does not resolve, RunError.
    """
    return simulate_many([Request(run, world_size, device, rank, steps)])[0]


def simulate_many(
    requests: Sequence[Request], jobs: int = 1, *, timeout_s: float = TIMEOUT_S
) -> list[Simulation]:
    """Every request, `jobs` at a time, from one process; raises the first error there is."""
    for request in requests:
        resolved(request)
    results = []
    with Simulator() as simulator:
        for outcome in simulator.outcomes(requests, jobs, timeout_s=timeout_s):
            if isinstance(outcome, DsLlamaError):
                raise outcome
            results.append(outcome)
    return results


def resolved(request: Request) -> Resolved:
    """The request's run resolved for its world; every mistake that can be seen without torch."""
    world, rank = request.world_size, request.rank
    if world < 1:
        raise CallError(
            f"a world of {world} processes",
            where="world_size",
            remedy="give the number of GPUs of the whole run, at least 1",
        )
    if not 0 <= rank < world:
        raise CallError(
            f"there is no rank {rank} in a world of {world}",
            where="rank",
            remedy=f"give a rank from 0 to {world - 1}",
        )
    if request.steps is not None and request.steps < 1:
        raise CallError(f"{request.steps} steps", where="steps", remedy="simulate at least 1")
    found = resolve(request.run, world, device="cuda" if request.device == "sim" else "cpu")
    refusals.check(found)
    return found


class Simulator:
    """A process that simulates; to be entered. Not for use by several threads at once."""

    def __enter__(self) -> Simulator:
        ours, theirs = socket.socketpair()
        self._log: IO[bytes] = tempfile.TemporaryFile()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ds_llama.simulator", str(theirs.fileno())],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C at the terminal is ours to deal with
            )
        self._connection = Connection(ours.detach())
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def outcomes(
        self, requests: Sequence[Request], jobs: int = 1, *, timeout_s: float = TIMEOUT_S
    ) -> list[Outcome]:
        """A Simulation or an error for each request, in their order; `jobs` at a time.

        Raises RunError when the simulator itself cannot start or dies.
        """
        found: dict[int, Outcome] = {}
        waiting = list(enumerate(requests))[::-1]
        running = 0
        while waiting or running:
            while waiting and running < max(1, jobs):
                number, request = waiting.pop()
                self._send((number, request, timeout_s))
                running += 1
            number, outcome = self._receive()
            found[number] = outcome
            running -= 1
        return [found[number] for number in range(len(requests))]

    def _send(self, message: tuple[int, Request, float]) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._died() from error

    def _receive(self) -> tuple[int, Outcome]:
        try:
            number, outcome, text = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if text is not None:
            outcome.__cause__ = RemoteTraceback(text)
        return number, outcome

    def _died(self) -> RunError:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        return RunError(
            f"the simulator's process ended with code {code}{said}",
            where="simulator",
            remedy="see whether `python -c 'import deepspeed'` works and memory is left",
        )


def _environment() -> dict[str, str]:
    """One thread, no GPU, no launcher's world, and this very package."""
    env = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    env.update(
        PYTHONPATH=os.pathsep.join(paths),
        DS_ACCELERATOR="cpu",
        CUDA_VISIBLE_DEVICES="",
        OMP_NUM_THREADS="1",
        TORCH_CPP_LOG_LEVEL="ERROR",
        TORCHINDUCTOR_COMPILE_THREADS="1",  # or importing it starts processes
    )
    return env
