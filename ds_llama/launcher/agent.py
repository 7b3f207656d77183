"""`python -m ds_llama.launcher.agent`: what runs on each host of a launch, one a host.

It compiles ops, starts the ranks when it is told to, and ends them when it is told to, when one of
them fails, when the connection closes, and when the supervisor has been silent for 15 s. What it
says goes through the stdin and stdout that ssh gave it, or, with --connect, to a port of the host
that this login came from.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import IO, Any

from ds_llama.errors import DsLlamaError
from ds_llama.launcher import ops, routes
from ds_llama.launcher.job import Job
from ds_llama.launcher.ranks import Ranks
from ds_llama.launcher.wire import BEAT_S, SILENT_S, Message, pack, unpack

_TICK_S = 0.1
_FLUSH_S = 5.0
END_S, SAVE_S = 3.0, 40.0
"""How long ranks have that are to end: of a failed run, which have nothing to save; and to save,
longer than the 30 s after which DeepSpeed's launch.py kills."""
_GONE = "gone"


class Agent:
    """`incoming` and `outgoing`: lines of `wire`. Everything happens in the thread of `run`."""

    def __init__(self, index: int, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self.index, self._incoming, self._outgoing = index, incoming, outgoing
        self._inbox: queue.SimpleQueue[tuple[str, Message]] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._drained = threading.Event()
        self._heard = time.monotonic()
        self._job: Job | None = None
        self._ranks: Ranks | None = None
        self._asked = False  # the ranks to save, which have time until:
        self._until = math.inf
        self._over = False

    def run(self, **hello: Any) -> None:
        """Until nothing is left to do on this host."""
        for work in (self._listen, self._speak):
            threading.Thread(target=work, daemon=True, name=work.__name__).start()
        self._say("hello", index=self.index, host=socket.gethostname(), pid=os.getpid(), **hello)
        try:
            while not self._over:
                with contextlib.suppress(queue.Empty):
                    self._obey(*self._inbox.get(timeout=_TICK_S))
                self._look()
        finally:
            if self._ranks is not None:
                self._ranks.end(0)
                self._ranks.close()
            self._outbox.put(None)
            self._drained.wait(_FLUSH_S)

    def stop(self, signum: int, frame: object) -> None:
        """Signal handler: as when the connection closes."""
        self._inbox.put((_GONE, {}))

    def _obey(self, kind: str, content: Message) -> None:
        actions: dict[str, Callable[[], None]] = {
            "route": lambda: self._say_master(content["towards"]),
            "job": lambda: self._prepare(Job.from_json(content["job"])),
            "prepared": lambda: self._say("ready"),
            "start": self._start,
            "stop": lambda: self._stop(content["how"], content["signum"]),
            _GONE: lambda: self._end(END_S),
        }
        if kind in actions:
            actions[kind]()

    def _say_master(self, towards: list[str]) -> None:
        address = routes.master(towards)
        self._say("master", address=address, port=routes.free_port())

    def _prepare(self, job: Job) -> None:
        """Compile in another thread: this one listens."""
        self._job = job
        os.environ.update(job.env)
        if not os.path.isdir(job.cwd):
            what = f"{job.cwd} is not there on {job.hosts[self.index].name}"
            remedy = "start where every host sees the same folder, or make it there"
            self._refuse(what, job.cwd, remedy)
            return
        threading.Thread(target=self._compile, args=(job.ops,), daemon=True, name="ops").start()

    def _compile(self, names: Sequence[str]) -> None:
        try:
            ops.build(names)
        except DsLlamaError as error:
            self._refuse(error.what, error.where, error.remedy)
        else:
            self._inbox.put(("prepared", {}))

    def _start(self) -> None:
        assert self._job is not None
        try:
            self._ranks = Ranks(self._job, self.index)
        except OSError as error:
            where = str(error.filename or self._job.logs)
            self._refuse(f"the ranks cannot be started: {error.strerror}", where, "mend that")

    def _refuse(self, what: str, where: str, remedy: str) -> None:
        self._say("refused", what=what, where=where, remedy=remedy)

    def _look(self) -> None:
        """See what has happened since the last time."""
        if time.monotonic() - self._heard > SILENT_S:
            self._end(END_S)
            return
        if self._ranks is None:
            return
        self._forward()
        fallen = self._ranks.fallen()
        if fallen and not self._asked:
            self._say("fallen", failures=[asdict(failure) for failure in fallen])
            self._end(END_S)
        elif self._ranks.launch.poll() is not None or time.monotonic() > self._until:
            self._end(0)

    def _forward(self) -> None:
        assert self._ranks is not None
        for text in self._ranks.output():
            self._say("out", text=text)

    def _stop(self, how: str, signum: int) -> None:
        if how == "save" and self._ranks is not None and self._ranks.are_up:
            self._asked = True
            if signum != signal.SIGUSR1:
                self._until = time.monotonic() + SAVE_S
            self._ranks.ask(signum)
        else:
            self._end(0 if how == "kill" else END_S)

    def _end(self, patience_s: float) -> None:
        """End the ranks, and say which of them had not finished."""
        if self._ranks is None:
            self._say("ended", unfinished=[], failures=[])
        else:
            self._ranks.end(patience_s)
            self._forward()
            unfinished = self._ranks.unfinished()
            failures = [asdict(self._ranks.describe(rank)) for rank in unfinished]
            self._say("ended", unfinished=unfinished, failures=failures)
        self._over = True

    def _say(self, kind: str, **content: Any) -> None:
        self._outbox.put(pack(kind, **content))

    def _speak(self) -> None:
        """Send what is in the outbox, and a beat when there is nothing."""
        with contextlib.suppress(OSError, ValueError):
            while True:
                try:
                    line = self._outbox.get(timeout=BEAT_S)
                except queue.Empty:
                    line = pack("beat")
                if line is None:
                    break
                self._outgoing.write(line)
                self._outgoing.flush()
        self._drained.set()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._incoming:
                self._heard = time.monotonic()
                if message := unpack(line):
                    self._inbox.put(message)
        self._inbox.put((_GONE, {}))


def main(argv: Sequence[str]) -> None:
    """Speak with whoever started us."""
    parser = argparse.ArgumentParser(prog="python -m ds_llama.launcher.agent")
    parser.add_argument("--connect", type=int, metavar="PORT")
    parser.add_argument("--token", default="")
    parser.add_argument("index", type=int)
    given = parser.parse_args(argv)
    login = os.environ.get("SSH_CONNECTION", "").split()
    if given.connect is None:
        incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    else:
        try:
            connection = socket.create_connection((login[0], given.connect), timeout=SILENT_S)
        except (OSError, IndexError) as error:
            sys.exit(f"the launcher cannot be reached from here, port {given.connect}: {error}")
        connection.settimeout(None)
        incoming, outgoing = connection.makefile("rb"), connection.makefile("wb")
    # From here on nobody else reads or writes there by mistake.
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    agent = Agent(given.index, incoming, outgoing)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, agent.stop)
    agent.run(token=given.token, address=login[2] if len(login) == 4 else "")


if __name__ == "__main__":
    main(sys.argv[1:])
