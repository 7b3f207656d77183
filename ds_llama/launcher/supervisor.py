"""One launch over several hosts, from the first hello to the last rank's end.

Whatever happens first, a rank that fails, a host that falls silent, a signal, ends everything on
every host; each agent does that on its own host, and does it by itself when it hears nothing more
from here.
"""

from __future__ import annotations

import asyncio
import math
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from ds_llama.launcher.agent import END_S, SAVE_S
from ds_llama.launcher.failure import Failure, cause, report
from ds_llama.launcher.job import Job
from ds_llama.launcher.peers import Calls, Peer
from ds_llama.launcher.screen import Screen
from ds_llama.launcher.wire import BEAT_S, SILENT_S, Message

HELLO_S = 45.0
"""How long a host may take from the first knock to a running Python."""
_STOP_S = {"end": END_S + 12.0, "save": SAVE_S + 15.0, "kill": 5.0}
"""What a host may take to say that nothing is left there."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_STAYS = (
    f"Ctrl-Z does nothing: hosts that hear nothing from here for {SILENT_S:g} s end their ranks"
)


@dataclass(frozen=True)
class Outcome:
    """`code` as a shell has it; `lost`: hosts that were not there, or not to the end."""

    code: int
    lost: tuple[str, ...] = ()
    signum: int | None = None


class Supervisor:
    """Runs a job once."""

    def __init__(self, job: Job, transport: str) -> None:
        self.job, self._transport = job, transport
        self._failures: list[Failure] = []
        self._stopping_since: float | None = None
        self._deadline = math.inf
        self._signum: int | None = None
        self._left_early = False  # a rank, before it had done all

    def run(self) -> Outcome:
        """Start, watch, stop; what went wrong is printed."""
        self._screen = Screen()
        try:
            return asyncio.run(self._run())
        finally:
            self._screen.close()

    async def _run(self) -> Outcome:
        self._changed = asyncio.Event()
        self._master: tuple[str, int] | None = None
        self._calls = Calls(self.job, self._heard, self._lost, self._screen.note)
        self._peers = self._calls.peers
        restore = self._catch_signals()
        beats: asyncio.Task[None] = asyncio.ensure_future(self._beat())
        self._began = time.monotonic()
        try:
            await self._calls.open(self._transport)
            await self._play()
            await self._until(lambda: all(peer.is_over for peer in self._peers), also_stopping=True)
        finally:
            beats.cancel()
            restore()
            await self._calls.close()
        return self._outcome()

    async def _play(self) -> None:
        """The steps that all hosts take together; cut short when the launch is to end."""
        if not await self._all("greeted"):
            return
        others = [peer.address for peer in self._peers[1:] if peer.address]
        self._peers[0].say("route", towards=others)
        if not await self._until(lambda: self._master is not None):
            return
        assert self._master is not None
        job = self.job.with_master(*self._master)
        for peer in self._peers:
            peer.say("job", job=job.to_json())
        if not await self._all("ready"):
            return
        for peer in self._peers:
            peer.state = "running"
            peer.say("start")

    def _all(self, state: str) -> Coroutine[Any, Any, bool]:
        return self._until(lambda: all(peer.state == state for peer in self._peers))

    async def _until(self, true: Callable[[], bool], *, also_stopping: bool = False) -> bool:
        """Wait; False when the launch is to end before, or when its end takes too long."""
        while not true():
            if self._stopping_since is not None and not also_stopping:
                return False
            if time.monotonic() > self._deadline:
                return False
            self._changed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 1.0)
        return True

    async def _beat(self) -> None:
        """Let every host know that we are here, and see who does not do so."""
        while True:
            now = time.monotonic()
            for peer in self._peers:
                if peer.is_over:
                    continue
                peer.say("beat")
                if peer.state == "called":
                    if now - self._began > HELLO_S:
                        self._lose(peer, f"did not answer within {HELLO_S:g} s")
                elif now - peer.heard > SILENT_S:
                    self._lose(peer, f"has been silent for {SILENT_S:g} s")
            await asyncio.sleep(BEAT_S)

    def _heard(self, peer: Peer, kind: str, content: Message) -> None:
        peer.heard = time.monotonic()
        if kind == "beat" or peer.is_over:
            return
        if kind == "hello":
            peer.state, peer.address = "greeted", content["address"]
        elif kind == "master":
            self._master = content["address"], content["port"]
        elif kind == "ready":
            peer.state = "ready"
        elif kind == "out":
            self._screen.out(content["text"])
        elif kind == "refused":
            self._fail(Failure(peer.name, **content))
        elif kind == "fallen":
            for failure in content["failures"]:
                self._fail(Failure(**failure))
        elif kind == "ended":
            self._left_early |= bool(content["unfinished"]) or peer.state != "running"
            self._end(peer, [Failure(**failure) for failure in content["failures"]])
        self._changed.set()

    def _end(self, peer: Peer, unfinished: list[Failure]) -> None:
        """A host is done; of those that were stopped only what they had to say counts."""
        peer.state = "ended"
        known = {failure.rank for failure in self._failures}
        for failure in unfinished:
            if failure.rank not in known and (self._stopping_since is None or failure.error):
                self._fail(failure)

    def _lost(self, peer: Peer, why: str) -> None:
        """A channel has closed."""
        if not peer.is_over:
            ended = "cannot be reached" if peer.state == "called" else "closed the connection"
            self._lose(peer, f"{ended}: {why}" if why else ended)

    def _lose(self, peer: Peer, what: str) -> None:
        peer.state = "lost"
        remedy = f"see whether `ssh {peer.name} true` works, and what that host says of itself"
        self._fail(Failure(peer.name, f"{peer.name} {what}", remedy=remedy))
        self._changed.set()

    def _fail(self, failure: Failure) -> None:
        self._failures.append(failure)
        if self._stopping_since is None or self._is_announced:
            self._stop("end")

    def _stop(self, how: str, signum: int = signal.SIGTERM) -> None:
        now = time.monotonic()
        self._stopping_since = self._stopping_since or now
        announced = how == "save" and signum == signal.SIGUSR1
        self._deadline = math.inf if announced else now + _STOP_S[how]
        for peer in self._peers:
            if not peer.is_over:
                peer.say("stop", how=how, signum=signum)
        self._changed.set()

    @property
    def _is_announced(self) -> bool:
        """Whether the ranks save and have all the time that it takes."""
        return self._stopping_since is not None and self._deadline == math.inf

    def _catch_signals(self) -> Callable[[], None]:
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        loop = asyncio.get_running_loop()
        actions = {signum: partial(self._receive, signum) for signum in _SIGNALS}
        actions[signal.SIGTSTP] = partial(self._screen.note, _STAYS)
        before = {signum: signal.getsignal(signum) for signum in actions}
        if before[signal.SIGHUP] is signal.SIG_IGN:
            del actions[signal.SIGHUP]  # nohup
        for signum, action in actions.items():
            loop.add_signal_handler(signum, action)

        def restore() -> None:
            for signum in actions:
                loop.remove_signal_handler(signum)
                signal.signal(signum, before[signum])

        return restore

    def _receive(self, signum: int) -> None:
        """The first has the ranks save; the second ends them at once.

        SIGUSR1 announces an end: it gives all the time that a save takes, and none of it counts as
        a second one.
        """
        if self._is_announced and signum == signal.SIGUSR1:
            return
        if self._stopping_since is not None and not self._is_announced:
            self._stop("kill")
            return
        self._signum = self._signum or signum
        running = any(peer.state == "running" for peer in self._peers)
        does = "the ranks save and end; again: at once" if running else "nothing has begun"
        if signum == signal.SIGUSR1 and running:
            does = "the ranks save and end"
        self._screen.note(f"{signal.Signals(signum).name}: {does}")
        # What they save at is SIGTERM, whatever ends us: a second signal is ours to act on.
        usual = signal.SIGUSR1 if signum == signal.SIGUSR1 else signal.SIGTERM
        self._stop("save" if running else "kill", usual)

    def _outcome(self) -> Outcome:
        for peer in self._peers:
            if peer.state == "running":
                self._screen.note(f"{peer.name} has not said that its ranks ended")
            if not peer.is_over:
                peer.state = "lost"
        lost = tuple(peer.name for peer in self._peers if peer.state == "lost")
        if self._failures:
            assert self._stopping_since is not None
            self._screen.note(report(self._failures, time.monotonic() - self._stopping_since))
        code = cause(self._failures).code if self._failures else 0
        done = not lost and not self._left_early
        if self._signum == signal.SIGUSR1 and (self._failures or done):
            return Outcome(code, lost, self._signum)  # a rank did not save, or all had finished
        if self._signum is not None:
            return Outcome(128 + self._signum, lost, self._signum)
        return Outcome(code, lost)
