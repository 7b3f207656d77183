"""A rank that hangs is named, and its run ends, long before a collective gives up.

    each rank's thread, now and then:  writes where its rank is (`pulse`) to FOLDER/<rank>.json
    ranks 0 and 1:                     read everyone's and give the verdict: FOLDER/verdict.json
    each rank, at a verdict:           prints its stack if it is the one that hangs; ends when the
                                       one that judged has spoken, since a launcher ends the others
                                       once the first has ended

The rank that the others wait for is the one that is behind: fewest beats, then fewest collectives
begun; it hangs when it has not moved for as long as its phase may take. A rank whose own thread
does not write any more is stopped, or stuck outside Python. Clocks of hosts are not compared. A
beat costs the training thread nothing but a few attributes; the files are the thread's.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from ds_llama.errors import RunError
from ds_llama.measure import pulse

VERDICT = "verdict.json"
_SPOKEN = "spoken"
SLOW_FACTOR, SLOW_S, WAITED_S = 10.0, 300.0, 1500.0
"""How much longer silence may last in `pulse.SLOW` phases and in the first step of a process, for
how long at least, and at most while others wait: their collective gives up after half an hour."""
_LEFT = "left"
_JUDGES = 2
_LONGEST_POLL_S = 10.0
_GRACE_S = 1.0
_STACK = signal.SIGQUIT
"""Has a process of a watched rank print its stack, whatever it is stuck in."""


@dataclass(frozen=True)
class Place:
    """Where a rank was when its thread wrote last; `silent_s` since its last beat, by its clock."""

    rank: int
    host: str = ""
    pid: int = 0
    step: int = 0
    phase: str = "start"
    beats: int = -1
    collectives: int = 0
    slow: bool = True
    silent_s: float = 0.0
    tick: int = -1


@dataclass(frozen=True)
class Verdict:
    """Who hangs, in words, and those of them whose threads do not write."""

    by: int
    hung: list[int]
    stalled: list[int]
    error: list[str]


class Watch:
    """One rank's thread. `ended` hears, on the rank that judged, what the run ends with."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        timeout_s: float,
        *,
        collectives: Callable[[], int] = lambda: 0,
        ended: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.folder, self.rank, self.world_size = folder, rank, world_size
        self.timeout_s, self.poll_s = timeout_s, min(timeout_s / 10, _LONGEST_POLL_S)
        self._collectives, self._ended, self._tick = collectives, ended, 0
        start = time.monotonic()
        self._seen = {r: (Place(r), start) for r in range(world_size)}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="liveness")

    def start(self) -> None:
        """Watch from now on."""
        faulthandler.register(_STACK, file=sys.__stderr__ or 2, all_threads=True)
        self._thread.start()

    def stop(self) -> None:
        """No more: this rank has come to its end, unless a verdict is what broke its collective."""
        self._stopping.set()
        self._thread.join()
        with suppress(OSError, ValueError):
            self._obey()
        faulthandler.unregister(_STACK)
        for leave in (self._path(self.rank).unlink, self.folder.rmdir, self.folder.parent.rmdir):
            with suppress(OSError):
                leave()  # the last rank's calls succeed

    def _work(self) -> None:
        last = time.monotonic()
        while not self._stopping.wait(self.poll_s):
            now = time.monotonic()
            if now - last > self.timeout_s / 2:
                self._forgive(now)
            last = now
            with suppress(OSError, ValueError):
                self._write()
                self._obey()
                if self.rank < _JUDGES and (verdict := self.judge(self._places())) is not None:
                    self._publish(verdict)
                    self._obey()

    def _forgive(self, now: float) -> None:
        """This process has stood still, as when a scheduler suspends a job: so may have all."""
        pulse.HERE.since = now
        self._seen = {rank: (place, now) for rank, (place, _) in self._seen.items()}

    def _obey(self) -> None:
        if (self.folder / VERDICT).exists():
            self._end(Verdict(**json.loads((self.folder / VERDICT).read_bytes())))

    def _path(self, rank: int) -> Path:
        return self.folder / f"{rank:05d}.json"

    def _here(self) -> Place:
        here = pulse.HERE
        silent_s, self._tick = time.monotonic() - here.since, self._tick + 1
        return Place(
            *(self.rank, socket.gethostname(), os.getpid(), here.step, here.phase, here.beats),
            *(self._collectives(), here.slow, silent_s, self._tick),
        )

    def _write(self) -> None:
        path = self._path(self.rank)
        staged = path.with_suffix(".new")
        staged.write_text(json.dumps(asdict(self._here())))
        os.replace(staged, path)

    def _places(self) -> dict[int, tuple[Place, float]]:
        """Every rank's last word, and for how many seconds none has come since."""
        now = time.monotonic()
        for rank, (known, _) in self._seen.items():
            try:
                found = Place(**json.loads(self._path(rank).read_bytes()))
            except FileNotFoundError:
                if known.tick < 0:
                    continue  # it has not begun
                found = replace(known, phase=_LEFT)
            if found != known:
                self._seen[rank] = (found, now)
        return {rank: (place, now - when) for rank, (place, when) in self._seen.items()}

    def judge(self, places: dict[int, tuple[Place, float]]) -> Verdict | None:
        """Who hangs, if the rank that the others wait for has been silent for longer than it may.

        places: of every rank, with the seconds for which its thread has not written.
        """
        if any(place.phase == _LEFT for place, _ in places.values()):
            return None  # a rank that has left waits for nobody, and the others are at their end
        least = min((place.beats, place.collectives) for place, _ in places.values())
        behind = {r for r, (p, _) in places.items() if (p.beats, p.collectives) == least}
        alike = len(behind) == len(places)
        stalled = sorted(
            rank
            for rank in self._silent(places, waited_for=True)
            if places[rank][1] > self.timeout_s / 2
        )
        silent = self._silent(places, waited_for=not alike)
        if alike and behind != silent:
            behind = set()  # all are in the same place: some have been there for a little longer
        hung = stalled or sorted(behind & silent)
        if not hung:
            return None
        patience_s = self._patience_s(places[hung[0]][0], waited_for=bool(stalled) or not alike)
        words = self._words(places[hung[0]][0], patience_s, hung, stalled)
        return Verdict(self.rank, hung, stalled, words)

    def _silent(self, places: dict[int, tuple[Place, float]], *, waited_for: bool) -> set[int]:
        return {
            rank
            for rank, (place, quiet_s) in places.items()
            if place.silent_s + quiet_s > self._patience_s(place, waited_for=waited_for)
        }

    def _patience_s(self, place: Place, *, waited_for: bool) -> float:
        if not place.slow:
            return self.timeout_s
        longest = max(self.timeout_s * SLOW_FACTOR, SLOW_S)
        return min(longest, max(self.timeout_s, WAITED_S)) if waited_for else longest

    def _words(
        self, first: Place, patience_s: float, hung: list[int], stalled: list[int]
    ) -> list[str]:
        waiting = [rank for rank in range(self.world_size) if rank not in hung]
        what = f"{_ranks(hung)} {_verb(hung, 'hang')}: no progress for "
        what += f"{patience_s:g} s in step {first.step}, {first.phase}"
        if waiting:
            what += f"; {_ranks(waiting)} {_verb(waiting, 'wait')}"
        if stalled:
            what += f"; last heard of there, {_ranks(stalled)} "
            what += f"{'are' if len(stalled) > 1 else 'is'} stopped, or stuck outside Python"
        return [
            what,
            f"step {first.step}, rank {first.rank} on {first.host}, process {first.pid}",
            "see the stack above for what it waits for; resume from the last checkpoint; if the "
            "phase may take so long, make stability.hang_timeout_s larger",
        ]

    def _publish(self, verdict: Verdict) -> None:
        """The first verdict is everybody's."""
        with suppress(FileExistsError), (self.folder / VERDICT).open("x") as file:
            json.dump(asdict(verdict), file)

    def _end(self, verdict: Verdict) -> None:
        """This process ends: one that hangs shows where, the one that judged speaks last."""
        try:
            if self.rank in verdict.hung:
                print(f"rank {self.rank} hangs here:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
            self._path(self.rank).unlink(missing_ok=True)
            if self.rank == verdict.by:
                self._speak(verdict)
            else:
                self._wait(lambda: (self.folder / _SPOKEN).exists(), patience=3)
        finally:
            os._exit(RunError.exit_code)

    def _speak(self, verdict: Verdict) -> None:
        """The last word, and the end of processes that do not come to it by themselves."""
        others = [self._path(rank) for rank in verdict.hung if rank != self.rank]
        self._signal(verdict.stalled, signal.SIGCONT)
        self._wait(lambda: not any(path.exists() for path in others))
        stuck = [rank for rank in verdict.stalled if self._path(rank).exists()]
        self._signal(stuck, _STACK)
        time.sleep(_GRACE_S / 5 if stuck else 0)
        what, where, remedy = verdict.error
        self._ended(what)
        print(RunError(what, where=where, remedy=remedy), file=sys.stderr, flush=True)
        (self.folder / _SPOKEN).touch()
        self._signal(stuck, signal.SIGKILL)

    def _wait(self, until: Callable[[], bool], patience: int = 1) -> None:
        """At most for so many times as long as it takes every rank to see the verdict."""
        deadline = time.monotonic() + patience * (self.poll_s + _GRACE_S)
        while time.monotonic() < deadline and not until():
            time.sleep(_GRACE_S / 20)

    def _signal(self, stalled: list[int], signum: signal.Signals) -> None:
        for rank in stalled:
            place = self._seen[rank][0]
            with suppress(psutil.Error):
                if place.host == socket.gethostname():
                    process = psutil.Process(place.pid)
                    if process.ppid() == os.getppid():  # of the launcher that started this one
                        process.send_signal(signum)


def _ranks(numbers: list[int]) -> str:
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _verb(numbers: list[int], verb: str) -> str:
    return verb if len(numbers) > 1 else f"{verb}s"
