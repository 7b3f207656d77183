"""The hostfile: one `[user@]host slots=N` a line, `#` comments, blank lines.

DeepSpeed's own reader takes `slots=1x` for 1 and hands a host named `-oProxyCommand=…` to ssh as
an option, which runs the command. What passes here is a subset of what DeepSpeed reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ds_llama.errors import CallError, ConfigError, ConfigErrors

_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*")
_SLOTS = re.compile(r"slots=([1-9][0-9]{0,4})", re.ASCII)
_FORM = "write `host slots=N`, for example `node-1 slots=8`"


@dataclass(frozen=True)
class Host:
    """`slots` ranks run on `name`, which ssh is given as it is."""

    name: str
    slots: int


def read(path: Path | str) -> list[Host]:
    """The hosts in the file's order.

    Raises CallError when there is no such file, and ConfigErrors with every line that is wrong,
    each as file:line:column.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CallError(
            f"the hostfile cannot be read: {error.strerror}",
            where=str(path),
            remedy="give the path of a hostfile, or --nproc for this machine alone",
        ) from None
    return parse(text, str(path))


def parse(text: str, path: str) -> list[Host]:
    """As `read`, of a hostfile's text."""
    hosts: dict[str, tuple[Host, int]] = {}
    errors: list[ConfigError] = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            host = _parse_line(line, f"{path}:{number}")
            if host and host.name in hosts:
                raise _error(
                    f"{host.name} is listed twice, first in line {hosts[host.name][1]}",
                    f"{path}:{number}:{line.index(host.name) + 1}",
                    "keep one line a host, with the sum of its slots",
                )
        except ConfigError as error:
            errors.append(error)
            continue
        if host:
            hosts[host.name] = (host, number)
    if not hosts and not errors:
        errors.append(_error("the hostfile names no host", f"{path}:1:1", _FORM))
    if errors:
        raise ConfigErrors(errors)
    return [host for host, _ in hosts.values()]


def _parse_line(line: str, where: str) -> Host | None:
    words = [(found.start() + 1, found.group()) for found in re.finditer(r"\S+", line)]
    comment = next((i for i, (_, word) in enumerate(words) if word.startswith("#")), len(words))
    words = words[:comment]
    if not words:
        return None
    column, name = words[0]
    if not _NAME.fullmatch(name):
        remedy = "use letters, digits, dots, dashes and underscores, optionally after `user@`"
        raise _error(f"{name!r} is not a host name", f"{where}:{column}", remedy)
    if len(words) == 1:
        raise _error(f"{name} has no slots", f"{where}:{column + len(name)}", _FORM)
    column, slots = words[1]
    found = _SLOTS.fullmatch(slots)
    if not found:
        raise _error(f"{slots!r} is not slots=N with N of at least 1", f"{where}:{column}", _FORM)
    if len(words) > 2:
        column, extra = words[2]
        raise _error(f"{extra!r} after the slots means nothing", f"{where}:{column}", _FORM)
    return Host(name, int(found.group(1)))


def _error(what: str, where: str, remedy: str) -> ConfigError:
    return ConfigError(what, where=where, remedy=remedy)
