"""A rank that hangs is named, and its run ends, long before a collective gives up.

    each rank's thread, now and then:  writes where its rank is (`pulse`) to FOLDER/<rank>.json
    ranks 0 and 1:                     read everyone's and give the verdict: FOLDER/verdict.json
    each rank, at a verdict:           prints its stack if it is the one that hangs, and ends

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
SLOW_FACTOR, SLOW_S = 10.0, 300.0
"""How much longer silence may last in `pulse.SLOW` phases and in the first step of a process, and
for how long at least."""
_LEFT = "left"
_JUDGES = 2
_LONGEST_POLL_S = 10.0
_GRACE_S = 1.0


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
        self._thread.start()

    def stop(self) -> None:
        """No more: this rank has come to its end, unless a verdict is what broke its collective."""
        self._stopping.set()
        self._thread.join()
        with suppress(OSError, ValueError):
            self._obey()
        for leave in (self._path(self.rank).unlink, self.folder.rmdir, self.folder.parent.rmdir):
            with suppress(OSError):
                leave()  # the last rank's calls succeed

    def _work(self) -> None:
        while not self._stopping.wait(self.poll_s):
            with suppress(OSError, ValueError):
                self._write()
                self._obey()
                if self.rank < _JUDGES and (verdict := self.judge(self._places())) is not None:
                    self._publish(verdict)
                    self._obey()

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
        silent = {
            rank
            for rank, (place, quiet_s) in places.items()
            if place.silent_s + quiet_s > self._patience_s(place)
        }
        stalled = sorted(r for r in silent if places[r][1] > self.timeout_s / 2)
        least = min((place.beats, place.collectives) for place, _ in places.values())
        behind = {r for r, (p, _) in places.items() if (p.beats, p.collectives) == least}
        if len(behind) == len(places) and behind != silent:
            behind = set()  # all are in the same place: some have been there for a little longer
        hung = stalled or sorted(behind & silent)
        if not hung:
            return None
        return Verdict(self.rank, hung, stalled, self._words(places[hung[0]][0], hung, stalled))

    def _patience_s(self, place: Place) -> float:
        return max(self.timeout_s * SLOW_FACTOR, SLOW_S) if place.slow else self.timeout_s

    def _words(self, first: Place, hung: list[int], stalled: list[int]) -> list[str]:
        waiting = [rank for rank in range(self.world_size) if rank not in hung]
        what = f"{_ranks(hung)} {_verb(hung, 'hang')}: no progress for "
        what += f"{self._patience_s(first):g} s in step {first.step}, {first.phase}"
        if waiting:
            what += f"; {_ranks(waiting)} {_verb(waiting, 'wait')}"
        if stalled:
            what += f"; the process of {_ranks(stalled)} is stopped, or stuck outside Python"
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
            if self.rank == verdict.by:
                self._let_others_end(verdict.stalled)
                what, where, remedy = verdict.error
                self._ended(what)
                error = RunError(what, where=where, remedy=remedy)
                print(error, file=sys.stderr, flush=True)
        finally:
            os._exit(RunError.exit_code)

    def _let_others_end(self, stalled: list[int]) -> None:
        """Stopped processes of this launch go on, to their own end; one that does not is killed."""
        self._signal(stalled, signal.SIGCONT)
        time.sleep(self.poll_s + _GRACE_S)
        self._signal(stalled, signal.SIGKILL)

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
