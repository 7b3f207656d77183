"""The hostfile: one `[user@]host slots=N` a line, `#` comments, blank lines.

DeepSpeed's own reader (deepspeed/launcher/runner.py:237) takes `slots=1x` for 1 and hands a host
named `-oProxyCommand=…` to ssh as an option, which runs the command. What passes here is a subset
of what DeepSpeed reads, and means the same to it. A hostfile is untrusted input.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from ds_llama.errors import ConfigError
from ds_llama.launcher import textfile

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})"
_HOST = re.compile(rf"(?!.{{254}}){_LABEL}(?:\.{_LABEL})*\.?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
# What inet_aton takes for an address: 12 is 0.0.0.12, and 010.0.0.1 is 8.0.0.1.
_NUMERIC = re.compile(r"(?:0[xX][0-9A-Fa-f]*|[0-9]+)(?:\.(?:0[xX][0-9A-Fa-f]*|[0-9]+))*\.?")
_SLOTS = re.compile(r"slots=([1-9][0-9]{0,4})", re.ASCII)
_FORM = "write `host slots=N`, for example `node-1 slots=8`"
_CHARACTERS = "use letters, digits, dots, dashes and underscores, optionally after `user@`"


@dataclass(frozen=True)
class Host:
    """`slots` ranks run on `name`, which ssh is given as it is.

    devices: the devices of these ranks, as many as slots; empty for 0 … slots-1. where: the
    hostfile's line, `file:line`, for messages.
    """

    name: str
    slots: int
    devices: tuple[int, ...] = ()
    where: str = field(default="", compare=False)

    @property
    def host(self) -> str:
        """The name without `user@`."""
        return self.name.rpartition("@")[2]

    @property
    def device_ids(self) -> tuple[int, ...]:
        """The device of each rank, in the order of the ranks."""
        return self.devices or tuple(range(self.slots))


def read(path: Path | str) -> list[Host]:
    """The hosts in the file's order.

    Raises CallError when there is no such file, and ConfigErrors with every line that is wrong
    (the first 20), each as file:line:column.
    """
    instead = "give the path of a hostfile, or --nproc for this machine alone"
    return parse(textfile.read_text(path, "hostfile", instead), str(path))


def parse(text: str, path: str) -> list[Host]:
    """As `read`, of a hostfile's text."""
    hosts: dict[str, Host] = {}
    errors: list[ConfigError] = []
    for line, where, wrong in textfile.lines(text, path):
        try:
            if wrong:
                raise wrong
            host = _parse_line(line, where)
            if host and (before := hosts.get(host.host.casefold())):
                number = before.where.rpartition(":")[2]
                raise _error(
                    f"{host.host} is listed twice, first in line {number}",
                    f"{where}:{line.index(host.name) + 1}",
                    "keep one line a host, with the sum of its slots",
                )
        except ConfigError as error:
            errors.append(error)
            continue
        if host:
            hosts[host.host.casefold()] = host
    if not hosts and not errors:
        errors.append(_error("the hostfile names no host", f"{path}:1:1", _FORM))
    if errors:
        raise textfile.capped(errors, path)
    return list(hosts.values())


def _parse_line(line: str, where: str) -> Host | None:
    content = re.split(r"(?:^|(?<=[ \t]))#", line, maxsplit=1)[0]
    for column, character in enumerate(content, start=1):
        if not character.isascii():  # a no-break space, or a letter that looks like another
            what = f"{textfile.describe(character)} is neither a name nor a blank"
            raise _error(what, f"{where}:{column}", _CHARACTERS)
    words = [(found.start() + 1, found.group()) for found in re.finditer(r"[^ \t]+", content)]
    if not words:
        return None
    (column, name), *rest = words
    _check_name(name, f"{where}:{column}")
    if not rest:
        raise _error(f"{name} has no slots", f"{where}:{column + len(name)}", _FORM)
    return Host(name, _slots(rest, where), where=where)


def _slots(words: list[tuple[int, str]], where: str) -> int:
    (column, word), *rest = words
    found = _SLOTS.fullmatch(word)
    if not found:
        joined = "".join(word for _, word in words)
        if _SLOTS.fullmatch(joined):
            raise _error("blanks around =", f"{where}:{column}", f"write {joined}")
        raise _error(f"{word!r} is not slots=N with N of 1 to 99999", f"{where}:{column}", _FORM)
    if rest:
        column, extra = rest[0]
        raise _error(f"{extra!r} after the slots means nothing", f"{where}:{column}", _FORM)
    return int(found.group(1))


def _check_name(name: str, where: str) -> None:
    user, at, host = name.rpartition("@")
    if name.startswith("-") or host.startswith("-"):
        what = f"{name!r} begins with a dash, which ssh would read as an option"
        raise _error(what, where, "a name begins with a letter or a digit")
    if "[" in host and not host.startswith("["):
        what = f"{name!r} is a range of hosts, which DeepSpeed takes for one name"
        raise _error(what, where, "write one line a host")
    if ":" in host:
        raise _colon(name, host, where)
    if "=" in host:
        raise _error(f"{name!r} stands where a host should", where, _FORM)
    if not _HOST.fullmatch(host) or (at and not _USER.fullmatch(user)):
        raise _error(f"{name!r} is not a host name", where, _CHARACTERS)
    if _NUMERIC.fullmatch(host):
        _check_address(name, host, where)


def _colon(name: str, host: str, where: str) -> ConfigError:
    """`--include` ends a host's name at a colon, and pdsh -w takes what is before it for a type."""
    bare, _, port = host.rpartition(":")
    if port.isdigit() and _HOST.fullmatch(bare):
        remedy = f"write `{bare} slots=N`; a port goes into ~/.ssh/config as Port {port}"
        return _error(f"{name!r} has a colon", where, remedy)
    remedy = "give the host a name in ~/.ssh/config (Host, HostName) or /etc/hosts"
    try:
        ipaddress.IPv6Address(host.strip("[]"))
    except ValueError:
        return _error(f"{name!r} is not a host name", where, _CHARACTERS)
    return _error(f"{name!r} is an IPv6 address, which --include cannot name", where, remedy)


def _check_address(name: str, host: str, where: str) -> None:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        what = f"{name!r} is read as a number by some programs and as a name by others"
        raise _error(
            what, where, "write an IPv4 address as a.b.c.d without zeros in front"
        ) from None


def _error(what: str, where: str, remedy: str) -> ConfigError:
    return ConfigError(what, where=where, remedy=remedy)
