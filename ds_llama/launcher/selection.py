"""`--include` and `--exclude`: hosts and devices of a hostfile, in DeepSpeed's syntax.

    worker-0@worker-1:0,2        all of worker-0, and devices 0 and 2 of worker-1

What passes here means what deepspeed/launcher/runner.py:310 (parse_resource_filter) makes of it.
That one also takes "worker-0:0@worker-0" for worker-0:0, and an exclusion of everything.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace

from ds_llama.errors import CallError
from ds_llama.launcher.hostfile import Host

_FORM = "write HOST or HOST:SLOT,SLOT, several with @ between: worker-0@worker-1:0,2"
_SLOT = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)


def select(hosts: Sequence[Host], include: str | None, exclude: str | None) -> list[Host]:
    """The hosts that are left, in the hostfile's order, each with the devices that are left.

    A host that the hostfile lists as `user@host` is named by its host alone. Raises CallError
    with flag and column for both at once, an unknown host, a slot that is not there, anything
    named twice, and when nothing is left.
    """
    if include is not None and exclude is not None:
        raise CallError(
            "--include and --exclude exclude each other",
            where="command line",
            remedy="name what to use, or what not to use",
        )
    if include is not None:
        named = _parse(include, "--include", hosts)
        return [_with(host, named[host.host]) for host in hosts if host.host in named]
    if exclude is None:
        return list(hosts)
    named = _parse(exclude, "--exclude", hosts)
    left = []
    for host in hosts:
        gone = named.get(host.host, ())
        if devices := tuple(device for device in host.device_ids if device not in gone):
            left.append(_with(host, devices))
    if not left:
        raise CallError(
            f"{exclude!r} leaves no host", where="--exclude", remedy="exclude less than everything"
        )
    return left


def _with(host: Host, devices: tuple[int, ...]) -> Host:
    plain = devices == tuple(range(len(devices)))
    return replace(host, slots=len(devices), devices=() if plain else devices)


def _parse(text: str, flag: str, hosts: Sequence[Host]) -> dict[str, tuple[int, ...]]:
    """The devices that `text` names, by host; all of a host's where it names none."""
    known = {host.host: host for host in hosts}
    found: dict[str, set[int]] = {}
    whole: set[str] = set()
    column = 1
    for item in text.split("@"):
        name, colon, slots = item.partition(":")
        where = f"{flag}, column {column}"
        if not name:
            raise _error(f"a host's name is missing in {text!r}", where)
        if name not in known:
            raise _unknown(name, text, where, hosts)
        host = known[name]
        if name in found and (not colon or name in whole):
            raise _error(f"{name} is named twice", where)
        chosen = found.setdefault(name, set())
        if not colon:
            whole.add(name)
            chosen.update(host.device_ids)
        else:
            _slots(slots, host, chosen, flag, column + len(name) + 1)
        column += len(item) + 1
    return {name: tuple(sorted(slots)) for name, slots in found.items()}


def _slots(text: str, host: Host, chosen: set[int], flag: str, column: int) -> None:
    for word in text.split(","):
        where = f"{flag}, column {column}"
        if not _SLOT.fullmatch(word):
            raise _error(f"{word!r} is not the number of a slot", where)
        slot = int(word)
        if slot not in host.device_ids:
            last = host.device_ids[-1]
            remedy = f"its slots are 0 to {last}" if last else "its only slot is 0"
            raise CallError(f"{host.host} has no slot {slot}", where=where, remedy=remedy)
        if slot in chosen:
            raise _error(f"slot {slot} of {host.host} is named twice", where)
        chosen.add(slot)
        column += len(word) + 1


def _unknown(name: str, text: str, where: str, hosts: Sequence[Host]) -> CallError:
    for host in hosts:
        if host.name.startswith(f"{name}@") and host.name in text:
            remedy = f"@ is between hosts here: write {host.host} for {host.name}"
            return CallError(f"there is no host {name!r}", where=where, remedy=remedy)
    names = [host.host for host in hosts]
    near = difflib.get_close_matches(name, names, n=1)
    if not near and name.strip() in names:
        near = [name.strip()]
    shown = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
    remedy = f"did you mean {near[0]}?" if near else f"the hostfile has {shown}"
    return CallError(f"the hostfile has no host {name!r}", where=where, remedy=remedy)


def _error(what: str, where: str) -> CallError:
    return CallError(what, where=where, remedy=_FORM)
