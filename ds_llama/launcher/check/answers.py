"""What hosts answer, as values. It is untrusted: its form is checked, its text is tamed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic import ValidationError as Invalid

from ds_llama.launcher.check.reach import Fault
from ds_llama.launcher.hostfile import Host

MOST_BYTES = 8 * 2**20


def printable(text: str) -> str:
    """Without what could steer a terminal or break a line."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """`printable` line by line."""
    return "\n".join(printable(line) for line in text.splitlines())


Text = Annotated[str, StringConstraints(max_length=4096), AfterValidator(printable)]
Amount = Annotated[int, Field(ge=0, lt=2**62)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, lt=2**16)]


class Answer(BaseModel):
    """Strict: no number from a string, no key that nobody asked for."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Ping(Answer):
    """The clock there (seconds since 1970) and the Python that answers."""

    time_s: Seconds
    python: Annotated[list[Amount], Field(min_length=3, max_length=3)]
    at: Text


class Memory(Answer):
    total_bytes: Amount
    available_bytes: Amount


class Device(Answer):
    name: Text
    driver: Text | None = None
    total_bytes: Amount | None = None
    used_bytes: Amount | None = None


class Folder(Answer):
    """`at` is the nearest folder that is there."""

    at: Text
    free_bytes: Amount
    inodes_left: Amount | bool
    writable: bool


class Lock(Answer):
    path: Text
    age_s: Seconds
    held: bool


class Running(Answer):
    pid: Amount
    user: Text
    command: Text


class Marker(Answer):
    """The file that the first host has written, or the folder where it could not."""

    path: Text
    error: Text | None = None


class Facts(Answer):
    """What a host has; nothing but `cwd_error` when it lacks the working folder."""

    cwd_error: Text | None = None
    host_name: Text = ""
    machine: Text = ""
    versions: dict[Text, Text] = {}
    package: dict[Text, Text] = {}
    memory: Memory = Memory(total_bytes=0, available_bytes=0)
    devices: list[Device] = []
    cores: Amount = 0
    locks: list[Lock] = []
    ops: list[Text] = []
    runs: list[Running] = []
    interfaces: dict[Text, Text] = {}
    address: Text | None = None
    files: dict[Text, Text | None] = {}
    folders: dict[Text, Folder] = {}
    marker: Marker | None = None
    port: Port = 0
    port_error: Text | None = None


class Way(Answer):
    """From one host to another: by which interface and how fast, or why not."""

    error: Text | None = None
    interface: Text | None = None
    address: Text | None = None
    round_trip_s: Seconds | None = None


class Pairs(Answer):
    """`seen`: whether the first host's file is there; None when nobody asked."""

    reached: dict[Text, Way]
    seen: bool | None


class Sum(Answer):
    """What rank 0 measured of an all-reduce; interfaces by host, None where any was taken."""

    backend: Text
    ranks: Amount
    interfaces: dict[Text, Text | None]
    import_s: Seconds
    join_s: Seconds
    bytes: Amount
    allreduce_s: Seconds
    bus_bytes_per_s: Seconds


class BadAnswer(Exception):
    """What came is not what was asked for."""


_A = TypeVar("_A", bound=Answer)


def read(line: bytes) -> dict[str, Any]:
    """The JSON object in one line of a host. Raises BadAnswer."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise BadAnswer("it answers something that is not JSON") from None
    if not isinstance(found, dict):
        raise BadAnswer("it answers no JSON object")
    return found


def parse(kind: type[_A], content: Any) -> _A:
    """An answer of that kind. Raises BadAnswer with the first key that is wrong."""
    try:
        return kind.model_validate(content)
    except Invalid as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise BadAnswer(f"its answer is not what was asked for: {printable(where)[:80]}") from None


@dataclass(frozen=True)
class Clock:
    """How far ahead a host's clock is, known to within half the round trip."""

    ahead_s: float
    within_s: float


@dataclass(frozen=True)
class Heard:
    """All that was heard of one host; `fault` says why there is not more."""

    host: Host
    fault: Fault | None = None
    ping: Ping | None = None
    clock: Clock | None = None
    facts: Facts | None = None
    pairs: Pairs | None = None
