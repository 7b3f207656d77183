"""Ask all hosts at once, within a time that the slowest cannot stretch.

0 s     ssh to every host; each is asked what it has
6.5 s   whoever has not told is a fault; the others are asked for their way to each other
9 s     likewise; all connections end

as `limits` has it, of 10 s in all.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ds_llama.launcher.check import answers
from ds_llama.launcher.check.answers import BadAnswer, Facts, Heard, Pairs
from ds_llama.launcher.check.limits import Limits
from ds_llama.launcher.check.reach import Fault, Reach
from ds_llama.launcher.check.session import Failed, Session, program
from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.processes import allow_open_files

_LIMITS = Limits()


@dataclass(frozen=True)
class Inquiry:
    """What hosts are asked. Relative paths are of `cwd`.

    output: a folder that every host must see; the first writes a file beside it. port: must be free
    on the first host; 0 when any will do.
    """

    python: str
    cwd: str
    env: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    output: str | None = None
    port: int = 0


def gather(
    hosts: Sequence[Host], reach: Reach, inquiry: Inquiry, limits: Limits = _LIMITS
) -> list[Heard]:
    """What each host says, in their order, within the limits."""
    return asyncio.run(_gather(hosts, reach, inquiry, limits))


async def _gather(
    hosts: Sequence[Host], reach: Reach, inquiry: Inquiry, limits: Limits
) -> list[Heard]:
    allow_open_files(200 + 4 * len(hosts))  # three pipes each, and at most a pidfd
    token = secrets.token_hex(8)
    talks = [
        _Talk(host, reach, inquiry, limits, token, first=not i) for i, host in enumerate(hosts)
    ]
    try:
        await asyncio.gather(*(talk.within(talk.facts(), limits.facts_s) for talk in talks))
        well = [talk for talk in talks if talk.is_well]
        targets = [talk.target for talk in well]
        marker = talks[0].marker
        await asyncio.gather(
            *(talk.within(talk.pairs(targets, marker), limits.pairs_s) for talk in well)
        )
    finally:
        await asyncio.gather(*(talk.session.close() for talk in talks))
    return [talk.heard for talk in talks]


class _Talk:
    """One host through both phases; `heard` grows."""

    def __init__(
        self,
        host: Host,
        reach: Reach,
        inquiry: Inquiry,
        limits: Limits,
        token: str,
        *,
        first: bool,
    ) -> None:
        self.heard = Heard(host)
        self.session = Session(host, reach, inquiry.python, f"ds-llama-{token}")
        self._inquiry, self._token, self._first = inquiry, token, first
        self._limits = limits
        self._began = time.monotonic()

    @property
    def is_well(self) -> bool:
        """Whether it can be asked more."""
        facts = self.heard.facts
        return self.heard.fault is None and facts is not None and facts.port > 0

    @property
    def target(self) -> tuple[str, str, int]:
        """Where the others reach it."""
        assert self.heard.facts is not None
        address = self.heard.facts.address or self.heard.host.name.rpartition("@")[2]
        return self.heard.host.name, address, self.heard.facts.port

    @property
    def marker(self) -> str | None:
        """The file that it has written for the others to see, if it has the name it must have."""
        found = None if self.heard.facts is None else self.heard.facts.marker
        if found is None or found.error is not None or not found.path.endswith(f"-{self._token}"):
            return None
        return found.path

    async def facts(self) -> None:
        """Start, and ask for all that needs no other host."""
        await self.session.start(program())
        ping, clock = await self.session.ping()
        self.heard = replace(self.heard, ping=ping, clock=clock)
        if ping.at != self._inquiry.python:
            return
        asked = self._inquiry
        request = {
            "ask": "facts",
            "cwd": asked.cwd,
            "env": asked.env,
            "files": asked.files,
            "folders": asked.folders,
            "marker": asked.output if self._first else None,
            "port": asked.port if self._first else 0,
            "token": self._token,
        }
        facts = answers.parse(Facts, await self.session.ask(request))
        self.heard = replace(self.heard, facts=facts)

    async def pairs(self, targets: Sequence[tuple[str, str, int]], marker: str | None) -> None:
        """Ask for the way to all others."""
        others = [target for target in targets if target[0] != self.heard.host.name]
        request = {
            "ask": "pairs",
            "targets": others,
            "token": self._token,
            "timeout_s": self._limits.pair_s,
            "marker": None if self._first else marker,
        }
        pairs = answers.parse(Pairs, await self.session.ask(request))
        self.heard = replace(self.heard, pairs=pairs)

    async def within(self, work: Coroutine[Any, Any, None], until_s: float) -> None:
        """`work`, and its failure as a fault; given up `until_s` after the beginning."""
        try:
            await asyncio.wait_for(work, self._began + until_s - time.monotonic())
        except asyncio.TimeoutError:
            connected = self.heard.ping is not None
            fault = self.session.silent(until_s, connected=connected)
        except Failed as failed:
            fault = failed.fault
        except BadAnswer as bad:
            remedy = "see what answers there: the same ds_llama has to be asked on every host"
            fault = Fault("bad-answer", str(bad), remedy)
        else:
            return
        self.heard = replace(self.heard, fault=fault)
