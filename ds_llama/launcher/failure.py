"""Why a run over several hosts ended: which host, which rank, where it was, what it said."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_llama.launcher.marks import LOST

TAIL_LINES = 20
_TAIL_BYTES = 1 << 15
_ERROR = re.compile(r"^error: .+\nwhere: .+\nremedy: .+$", re.MULTILINE)
# Of whom a rank speaks that found another one hanging (measure.liveness).
_BLAMED = re.compile(
    r"^error: .* in step \d+, (?P<phase>[^;\n]+).*\n"
    r"where: step (?P<step>\d+), rank (?P<rank>\d+) on (?P<host>\S+), process",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Failure:
    """`code` as a shell has it. rank: None when it is the host itself. place: step and phase.

    log: of the rank; where: what else is to be looked at on the host.
    """

    host: str
    what: str
    code: int = 1
    rank: int | None = None
    place: str = ""
    log: str = ""
    tail: str = ""
    remedy: str = ""
    where: str = ""

    @property
    def error(self) -> str:
        """The last error that the rank itself reported, as three lines; empty without one."""
        found = _ERROR.findall(self.tail)
        return found[-1] if found else ""

    @property
    def is_echo(self) -> bool:
        """Whether it only tells that another rank was gone."""
        return self.rank is not None and any(word in self.tail for word in LOST)


def cause(failures: Sequence[Failure]) -> Failure:
    """Of several, in the order of their coming, the one that the others follow from."""
    return next((failure for failure in failures if not failure.is_echo), failures[0])


def of_rank(host: str, rank: int, code: int, *, place: str = "", log: str = "") -> Failure:
    """What is known on its host of a rank that left with this code; 0 is no success here."""
    ended = f"rank {rank} on {host} ended with exit code {code}"
    if code == 0:
        ended, code = f"rank {rank} on {host} left without having finished", 1
    remedy = "see its log"
    if code > 128:
        ended = f"rank {rank} on {host} was ended by signal {code - 128} ({_name(code - 128)})"
    if code == 128 + signal.SIGKILL:
        remedy = f"see the end of `dmesg` on {host}: the kernel kills what takes too much memory"
    return Failure(host, ended, code, rank, place, log, read_tail(log), remedy)


def report(failures: Sequence[Failure], stopped_s: float) -> str:
    """What is printed at the end. The last line names host, rank, phase, exit code and log."""
    first = cause(failures)
    lines = []
    if first.tail and first.rank != 0:  # rank 0's words are on the screen already
        lines.append(f"the last lines of {_who(first)}:")
        lines += [f"  {line}" for line in first.tail.splitlines()[-TAIL_LINES:]]
    others = [failure.error for failure in failures if failure.error and not failure.is_echo]
    said = first.error or next(iter(others), "")
    if not first.error:
        place = f", {first.place}" if first.place else ""
        there = first.where or first.log
        where = f"{first.host}:{there}" if there else first.host
        lines += [f"error: {first.what}{place}", f"where: {where}", f"remedy: {first.remedy}"]
        lines += [said] if said else []
    return "\n".join([*lines, _last_line(first, said, stopped_s)])


def _last_line(failure: Failure, said: str, stopped_s: float) -> str:
    host, rank, place, log = failure.host, failure.rank, failure.place, failure.log
    if blamed := _BLAMED.search(said):
        host, rank = blamed["host"], int(blamed["rank"])
        place = f"step {blamed['step']}, {blamed['phase']}"
        log = f"{Path(log).parent}/*_rank{rank}.log"
    words = [host, "" if rank is None else f"rank {rank}", place, f"exit code {failure.code}"]
    words.append(f"log {host}:{log}" if log else "")
    line = ", ".join(word for word in words if word)
    return f"the run failed: {line}; all else was stopped after {stopped_s:.1f} s"


def _who(failure: Failure) -> str:
    return failure.host if failure.rank is None else f"rank {failure.rank} on {failure.host}"


def read_tail(log: str) -> str:
    """The end of a log; empty when there is none."""
    try:
        with Path(log).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return "unknown"
