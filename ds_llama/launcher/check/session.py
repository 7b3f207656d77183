"""A conversation with the probe on one host: requests go out, answers come back, or a fault."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from asyncio.subprocess import Process, SubprocessStreamProtocol
from collections.abc import Mapping
from importlib import resources
from typing import Any

from ds_llama.launcher.check import answers
from ds_llama.launcher.check.answers import BadAnswer, Clock, Ping
from ds_llama.launcher.check.reach import Fault, Reach, environment
from ds_llama.launcher.hostfile import Host

_PROBE = "ds_llama.launcher.check.probe"
_LOADER = """\
import json, sys
parent = sys.modules[{package!r}] = type(sys)({package!r})
for name, source in json.loads({parts!r}):
    module = sys.modules[parent.__name__ + "." + name] = type(sys)(name)
    setattr(parent, name, module)
    exec(compile(source, name + ".py", "exec"), module.__dict__)
module.main(sys.argv[2])
"""
_MOST_ERRORS = 2**16
_FAREWELL_S = 1.0
_PINGS = 3


def program() -> bytes:
    """The probe's source, which loads its modules under their own names and starts the last."""
    folder = resources.files(_PROBE)
    parts = [
        [name, (folder / f"{name}.py").read_text(encoding="utf-8")]
        for name in ("facts", "network", "main")
    ]
    return _LOADER.format(package=_PROBE, parts=json.dumps(parts)).encode()


class Failed(Exception):
    """Nothing more will come of a host."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class Session:
    """One host's probe. `start`, then `ping` and `ask`, then `close`, whatever happened between."""

    def __init__(self, host: Host, reach: Reach, python: str, mark: str) -> None:
        self.host, self._reach, self._python, self._mark = host, reach, python, mark
        self._process: Process | None = None
        self._errors = b""
        self._draining: asyncio.Task[None] | None = None
        self._at: str | None = None

    async def start(self, source: bytes) -> None:
        """Start the transport and send the program. Raises Failed when there is no such command."""
        argv = self._reach.argv(self.host.name, self._python, len(source), self._mark)
        pipe, loop = asyncio.subprocess.PIPE, asyncio.get_running_loop()
        try:
            # As create_subprocess_exec, which does not hand out the transport: without closing it
            # a process whose output nobody reads would be waited for without end.
            self._transport, protocol = await loop.subprocess_exec(
                lambda: SubprocessStreamProtocol(limit=answers.MOST_BYTES, loop=loop),
                *argv,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=environment(),
                start_new_session=True,
            )
        except OSError as error:
            remedy = f"install {argv[0]} on this machine"
            message = f"{argv[0]} cannot be started here: {error.strerror}"
            raise Failed(Fault("no-command", message, remedy)) from None
        self._process = Process(self._transport, protocol, loop)
        self._draining = asyncio.create_task(self._drain())
        self._send(source)

    async def ping(self) -> tuple[Ping, Clock]:
        """The Python there, and its clock against the shortest of a few round trips."""
        best: Clock | None = None
        for _ in range(_PINGS):
            began = time.time()
            ping = answers.parse(Ping, await self.ask({"ask": "ping"}))
            ended = time.time()
            clock = Clock(ping.time_s - (began + ended) / 2, (ended - began) / 2)
            best = clock if best is None or clock.within_s < best.within_s else best
        assert best is not None
        return ping, best

    async def ask(self, request: Mapping[str, Any]) -> Any:
        """The answer to one request. Raises Failed when the probe or its connection ends, BadAnswer
        for what is no answer."""
        self._send(json.dumps(request).encode() + b"\n")
        while True:
            said = answers.read(await self._line())
            if "at" in said and len(said) == 1:
                self._at = answers.printable(str(said["at"]))[:200]
            elif "answer" in said:
                self._at = None
                return said["answer"]
            else:
                raise BadAnswer(answers.printable(str(said.get("failed")))[:200])

    def silent(self, after_s: float, *, connected: bool) -> Fault:
        """The fault of a host that was waited for in vain."""
        if not connected:
            return Fault(
                "ssh-timeout",
                f"it does not answer within {after_s:.0f} s",
                "see whether the host is up and no firewall is between, or take it out of the "
                "hostfile",
            )
        at = f" while it looks at {self._at}" if self._at else ""
        remedy = "see what it waits for: a network file system that hangs, or a load too high"
        return Fault("host-slow", f"it answers, and then nothing for {after_s:.0f} s{at}", remedy)

    async def close(self) -> None:
        """End the conversation; the probe takes along what it has made, a deaf one is killed."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._wait(_FAREWELL_S)
        self._transport.close()  # which kills
        await self._wait(_FAREWELL_S)
        if self._draining is not None:
            self._draining.cancel()

    async def _wait(self, limit_s: float) -> None:
        assert self._process is not None
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), limit_s)

    def _send(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(data)  # what an ended process does not take, its exit explains

    async def _line(self) -> bytes:
        """The next line that bears the mark, without it."""
        assert self._process is not None
        assert self._process.stdout is not None
        begin, heard = self._mark.encode() + b" ", 0
        while heard < answers.MOST_BYTES:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than the limit
                break
            if not line:
                raise Failed(await self._ended())
            if line.startswith(begin):
                return line.removeprefix(begin)
            heard += len(line)
        raise BadAnswer(f"it says more than {answers.MOST_BYTES >> 20} MiB")

    async def _ended(self) -> Fault:
        assert self._process is not None
        assert self._draining is not None
        await self._wait(_FAREWELL_S)
        code = self._process.returncode or 0
        with contextlib.suppress(asyncio.TimeoutError):  # a child of a child may hold the pipe
            await asyncio.wait_for(asyncio.shield(self._draining), 0.2)
        stderr = answers.printable_lines(self._errors.decode(errors="replace"))
        return self._reach.why(self.host.name, self._python, code, stderr)

    async def _drain(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._errors = (self._errors + chunk)[-_MOST_ERRORS:]
