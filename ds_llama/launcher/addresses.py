"""Where the hosts of a hostfile are: ssh's own settings, then the resolver, all hosts at once."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from queue import Empty, SimpleQueue

import psutil

from ds_llama.errors import ConfigError, ConfigErrors, MachineError
from ds_llama.launcher.hostfile import Host

TIMEOUT_S = 5.0
_AT_ONCE = 32
_HERE = "this machine"


@dataclass(frozen=True)
class Target:
    """What ssh makes of a host's name.

    addresses: all of `hostname`; of this machine's own, the word "this machine". Empty with a
    proxy (ProxyJump or ProxyCommand), on whose other side the name is resolved.
    """

    host: Host
    hostname: str
    port: int
    user: str
    proxy: str = ""
    addresses: frozenset[str] = frozenset()


def resolve(
    hosts: Sequence[Host], timeout_s: float = TIMEOUT_S, ssh: Sequence[str] = ("ssh",)
) -> tuple[list[Target], list[ConfigError]]:
    """Where each host is, in the order of `hosts`, and an error for each that is nowhere: that
    ssh's settings refuse, that has no address, or of which nothing was heard in `timeout_s`.

    ssh: the client with its options. Raises MachineError without one.
    """
    here = _own_addresses()
    answers = _at_once(lambda host: _target(host, ssh, here), hosts, timeout_s)
    targets, errors = [], []
    for host, answer in zip(hosts, answers, strict=True):
        if isinstance(answer, Target):
            targets.append(answer)
        elif isinstance(answer, ConfigError):
            errors.append(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            what = f"{host.host} was not resolved within {timeout_s:g} s"
            errors.append(_error(host, what, "see whether the name server answers"))
    return targets, errors


def require_distinct(hosts: Sequence[Host], *, spares: bool = False) -> None:
    """Raises ConfigErrors when two hosts are one machine and, but with `spares`, one is nowhere."""
    targets, errors = resolve(hosts)
    if errors := [*([] if spares else errors), *duplicates(targets)]:
        raise ConfigErrors(errors)


def duplicates(targets: Iterable[Target]) -> list[ConfigError]:
    """An error for every host that is a machine which an earlier one is too.

    Two of them are one when they share an address, the port and the proxy: containers may share
    their host's address, each behind a port of its own.
    """
    seen: dict[tuple[str, int, str], Target] = {}
    errors = []
    for target in targets:
        names = target.addresses or {target.hostname.casefold()}
        keys = [(name, target.port, target.proxy) for name in sorted(names)]
        first = next((seen[key] for key in keys if key in seen), None)
        if first is not None:
            shared = next(key[0] for key in keys if key in seen)
            what = f"{target.host.host} and {first.host.host} are one machine ({shared})"
            remedy = "keep one of the two lines, with the sum of the slots"
            errors.append(_error(target.host, what, remedy))
            continue
        seen.update(dict.fromkeys(keys, target))
    return errors


def hostname(host: Host, ssh: Sequence[str] = ("ssh",)) -> str:
    """The name or address that ssh connects to for this host; its own where ssh cannot tell."""
    with contextlib.suppress(MachineError):
        settings = _settings(host, ssh)
        if not isinstance(settings, ConfigError):
            return settings["hostname"]
    return host.host


def _settings(host: Host, ssh: Sequence[str]) -> dict[str, str] | ConfigError:
    """What `ssh -G` says; it reads settings and connects to nothing."""
    try:
        done = subprocess.run(
            [*ssh, "-G", "--", host.name],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError:
        raise MachineError(
            "there is no ssh client", where=str(ssh[0]), remedy="install openssh-client"
        ) from None
    except subprocess.TimeoutExpired:
        return _error(host, f"ssh -G {host.name} does not end", "see ~/.ssh/config: Match exec")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        what = f"ssh does not take {host.name}: {lines[-1] if lines else 'no reason given'}"
        return _error(host, what, "mend ~/.ssh/config")
    return dict(line.partition(" ")[::2] for line in reversed(done.stdout.splitlines()))


def _target(host: Host, ssh: Sequence[str], here: frozenset[str]) -> Target | ConfigError:
    settings = _settings(host, ssh)
    if isinstance(settings, ConfigError):
        return settings
    target = Target(host, settings["hostname"], int(settings["port"]), settings["user"])
    proxy = settings.get("proxyjump") or settings.get("proxycommand") or "none"
    if proxy != "none":
        return Target(host, target.hostname, target.port, target.user, proxy)
    addresses = _addresses(target.hostname, target.port)
    if isinstance(addresses, str):
        alias = "" if target.hostname == host.host else f" (ssh's HostName of {host.host})"
        what = f"{target.hostname}{alias} does not resolve: {addresses}"
        return _error(host, what, "correct the name, or give it a HostName in ~/.ssh/config")
    known = frozenset(_HERE if _is_here(one, here) else one for one in addresses)
    return Target(host, target.hostname, target.port, target.user, "", known)


def _addresses(name: str, port: int) -> set[str] | str:
    """All addresses of a name; the resolver's words when it has none."""
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return error.strerror or "no reason given"
    except UnicodeError:  # a label of more than 63 letters
        return "not a name for the resolver"
    return {str(sockaddr[0]) for *_, sockaddr in found}


def _is_here(address: str, here: frozenset[str]) -> bool:
    """Debian gives a machine's own name 127.0.1.1 in /etc/hosts, where localhost is 127.0.0.1."""
    found = ip_address(address.partition("%")[0])
    return address in here or found.is_loopback or found.is_unspecified


def _own_addresses() -> frozenset[str]:
    families = (socket.AF_INET, socket.AF_INET6)
    interfaces = psutil.net_if_addrs().values()
    return frozenset(one.address for each in interfaces for one in each if one.family in families)


def _at_once(
    task: Callable[[Host], Target | ConfigError], hosts: Sequence[Host], timeout_s: float
) -> list[Target | ConfigError | BaseException | None]:
    """What the task gives or raises of each host; None where nothing came in time.

    In threads that die with the process: nothing stops a getaddrinfo that waits for a server.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, Target | ConfigError | BaseException]] = SimpleQueue()
    for index in range(len(hosts)):
        waiting.put(index)

    def work() -> None:
        with contextlib.suppress(Empty):
            while True:
                index = waiting.get_nowait()
                try:
                    done.put((index, task(hosts[index])))
                except BaseException as error:
                    done.put((index, error))

    for _ in range(min(_AT_ONCE, len(hosts))):
        threading.Thread(target=work, daemon=True).start()
    answers: list[Target | ConfigError | BaseException | None] = [None] * len(hosts)
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(Empty):
        for _ in hosts:
            index, answer = done.get(timeout=max(0.001, deadline - time.monotonic()))
            answers[index] = answer
    return answers


def _error(host: Host, what: str, remedy: str) -> ConfigError:
    return ConfigError(what, where=host.where or host.name, remedy=remedy)
