"""The supervisor's side of its agents: how each is reached, and how far each has come."""

from __future__ import annotations

import asyncio
import hmac
import os
import re
import secrets
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ds_llama.launcher.job import Job
from ds_llama.launcher.processes import allow_open_files, kill_session
from ds_llama.launcher.transports import pdsh, ssh
from ds_llama.launcher.wire import LONGEST_BYTES, Message, pack, unpack

_KEPT_LINES = 5
_OWN_FILES = 200  # of this process, beside three pipes and at most a pidfd a host
# `node1: ssh exited with exit code 255`, after pdsh's own name and host.
_PDSH_ENDED = re.compile(r"^pdsh@[^:]+: (?P<host>[^:]+): ssh exited with exit code \d+")

Heard = Callable[["Peer", str, Message], None]
Lost = Callable[["Peer", str], None]
Note = Callable[[str], None]


@dataclass
class Peer:
    """One host. state: "called", "greeted", "ready", "running", "ended" or "lost"."""

    index: int
    name: str
    state: str = "called"
    heard: float = 0.0
    address: str = ""
    writer: asyncio.StreamWriter | None = None
    said: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come from there."""
        return self.state in ("ended", "lost")

    def say(self, kind: str, **content: Any) -> None:
        """Send without waiting: a host that does not read must not keep the others."""
        if self.writer is not None and not self.writer.is_closing():
            with suppress(OSError, RuntimeError):
                self.writer.write(pack(kind, **content))

    def keep(self, line: str) -> None:
        """Remember what was said on the way there, which tells why it failed."""
        self.said = [*self.said, line][-_KEPT_LINES:]


class Calls:
    """Opens the channels to all hosts and closes them; what comes in is handed on.

    heard: of a message. lost: of a channel that closed, and the last that was said about it.
    note: of a line that is no message.
    """

    def __init__(self, job: Job, heard: Heard, lost: Lost, note: Note) -> None:
        self.job, self._heard, self._lost, self._note = job, heard, lost, note
        self.peers = [Peer(index, host.name) for index, host in enumerate(job.hosts)]
        self._children: list[Process] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None
        self._token = secrets.token_urlsafe(24)

    async def open(self, transport: str) -> None:
        """Start whatever starts the agents."""
        allow_open_files(_OWN_FILES + (1 if transport == "pdsh" else 4) * len(self.peers))
        if transport == "pdsh":
            await self._open_pdsh()
            return
        for peer, argv in zip(self.peers, ssh.commands(self.job), strict=True):
            child = await self._spawn(argv, stdin=PIPE)
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            peer.writer = child.stdin
            notes = self._task(self._read_notes(peer, child.stderr))
            self._task(self._read(peer, child.stdout, notes))

    async def _open_pdsh(self) -> None:
        listening = _listen()
        port = listening.getsockname()[1]
        self._server = await asyncio.start_server(self._answer, sock=listening, limit=LONGEST_BYTES)
        [argv] = pdsh.commands(self.job, port, self._token)
        child = await self._spawn(argv, stdin=DEVNULL, env=os.environ | pdsh.environment())
        assert child.stdout is not None
        assert child.stderr is not None
        for stream in (child.stdout, child.stderr):
            self._task(self._read_pdsh(stream))

    async def close(self) -> None:
        """End the children that are ours; what they started on the hosts notices by itself."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in self.peers:
            if peer.writer is not None:
                peer.writer.close()
        for child in self._children:
            kill_session(child.pid)
            await child.wait()
        if self._server is not None:
            self._server.close()

    async def _spawn(self, argv: list[str], **settings: Any) -> Process:
        """A child in a session of its own, so that a Ctrl-C at the terminal is ours alone."""
        child = await asyncio.create_subprocess_exec(
            *argv, stdout=PIPE, stderr=PIPE, limit=LONGEST_BYTES, start_new_session=True, **settings
        )
        self._children.append(child)
        return child

    def _task(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    async def _read(
        self, peer: Peer, stream: asyncio.StreamReader, notes: Awaitable[None] | None = None
    ) -> None:
        """Messages until the channel closes."""
        with suppress(OSError, ValueError):
            async for line in stream:
                if message := unpack(line):
                    self._heard(peer, *message)
                else:
                    self._note(f"{peer.name}: {_text(line)}")
        if notes is not None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(notes), 1.0)  # the reason may come later
        self._lost(peer, "; ".join(peer.said))

    async def _read_notes(self, peer: Peer, stream: asyncio.StreamReader) -> None:
        with suppress(OSError, ValueError):
            async for line in stream:
                peer.keep(_text(line))
                self._note(f"{peer.name}: {_text(line)}")

    async def _read_pdsh(self, stream: asyncio.StreamReader) -> None:
        """pdsh names the host in front of each line, and itself in front of what it says."""
        with suppress(OSError, ValueError):
            async for line in stream:
                text = _text(line)
                ended = _PDSH_ENDED.match(text)
                name = ended["host"] if ended else text.partition(":")[0]
                for peer in self.peers:
                    if peer.name.rpartition("@")[2] == name:
                        if ended:
                            self._lost(peer, "; ".join(peer.said) or text)
                        else:
                            peer.keep(text.partition(": ")[2])
                if not ended:
                    self._note(text)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An agent, or somebody else, has connected."""
        task = asyncio.current_task()
        if task is not None:
            self._tasks.append(task)
        with suppress(OSError, ValueError, IndexError, asyncio.TimeoutError):
            hello = unpack(await asyncio.wait_for(reader.readline(), 10))
            if hello is not None and self._is_ours(hello[1]):
                peer = self.peers[int(hello[1]["index"])]
                peer.writer = writer
                self._heard(peer, *hello)
                await self._read(peer, reader)
        writer.close()

    def _is_ours(self, hello: Message) -> bool:
        """Whether it has the token, for a place that nobody has taken."""
        index = hello.get("index")
        right = hmac.compare_digest(str(hello.get("token")).encode(), self._token.encode())
        return (
            right
            and isinstance(index, int)
            and 0 <= index < len(self.peers)
            and self.peers[index].writer is None
        )


def _listen() -> socket.socket:
    """A free port on every address of this machine: hosts know it by one of them."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip()
