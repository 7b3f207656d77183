"""A row of the campaign over hosts, and the table of docs/multinode.md that rows make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_HEAD = """\
| event | moment | plain `deepspeed` | steps lost | ours: seconds | exit | last line | steps lost |
| --- | --- | --- | ---: | ---: | ---: | --- | ---: |"""

_LONGEST = 90
_TRAINS = re.compile(r"it trains: step \d+")
_FAILED = re.compile(r"the run failed: (.*?)(?:, exit code \d+)?(?:, log \S+)?; all else")
_STOPPED = re.compile(r"stopped at step \d+")


@dataclass
class Row:
    """One event and what came of it. seconds, code: None when the limit came first.

    resumes_at: the step of the checkpoint that a restart goes on from; None: it could not go on.
    steps_lost: those made since.
    """

    who: str
    event: str
    moment: str
    seconds: float | None
    code: int | None
    left: int = 0
    last_line: str = ""
    steps_lost: int | None = None
    resumes_at: int | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether one of ours was late, left something, or said that all went well."""
        if self.who != "ours" or self.last_line.startswith("it trains"):
            return False
        return self.seconds is None or self.seconds > 60 or self.left > 0 or self.code == 0

    def __str__(self) -> str:
        took = "never" if self.seconds is None else f"{self.seconds:.1f} s"
        lost = "-" if self.steps_lost is None else str(self.steps_lost)
        return (
            f"{self.who:6}{self.event:20}{self.moment:6} {took:>8}  code {self.code!s:5}"
            f" left {self.left}  lost {lost:>2}  {self.last_line}"
        )


def table(rows: Sequence[Row], events: Sequence[str]) -> str:
    """Markdown; a cell that nobody has played says so."""
    found = {(row.who, row.event, row.moment): row for row in rows}
    lines = [_HEAD]
    for event in events:
        for moment in ("start", "rest", "save"):
            ours, plain = (found.get((who, event, moment)) for who in ("ours", "plain"))
            if ours is not None or plain is not None:
                cells = [event, moment, *_plain(plain), *_ours(ours)]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plain(row: Row | None) -> list[str]:
    if row is None:
        return ["not measured", ""]
    if row.last_line.startswith("not begun"):
        return ["did not begin", ""]
    if _TRAINS.match(row.last_line):
        return ["trains on, unnoticed", ""]
    if row.seconds is None:
        end = "launcher runs on" if row.code is None else f"exit {row.code}"
        return [f"{end}, {row.left} processes left", _lost(row)]
    return [f"{row.seconds:.1f} s, exit {row.code}: {_said(row)}", _lost(row)]


def _ours(row: Row | None) -> list[str]:
    if row is None:
        return ["not measured", "", "", ""]
    took = "never" if row.seconds is None else f"{row.seconds:.1f}"
    if _TRAINS.match(row.last_line):
        return ["", "", "it trains: another port is taken", ""]
    return [took, str(row.code), _said(row), _lost(row)]


def _said(row: Row) -> str:
    """The last line, without what differs from run to run."""
    text = "" if row.event == "SIGKILL" else row.last_line
    if failed := _FAILED.match(text):
        text = failed[1]
    elif stopped := _STOPPED.match(text):
        text = stopped[0]
    text = text.removeprefix("error: ").replace("|", "\\|")
    return re.sub(r"/\S+/", "…/", text)[:_LONGEST].strip()


def _lost(row: Row) -> str:
    if row.moment == "start" or row.last_line.startswith("the other"):
        return ""
    return "cannot go on" if row.steps_lost is None else str(row.steps_lost)
