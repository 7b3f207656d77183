"""By which address and interface this host reaches another."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil


def source(towards: str) -> str | None:
    """The address that this host has on its route to `towards`; None without a route."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))  # sends nothing: it asks for the route
        address: str = probe.getsockname()[0]
        return address
    return None


def interface(address: str) -> str | None:
    """The name of the interface with this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            return str(name)
    return None


def master(towards: Sequence[str]) -> str:
    """The address of this host by which most of the others reach it; its own alone without any."""
    found = [address for other in towards if (address := source(other)) is not None]
    found = [address for address in found if not address.startswith("127.")] or found
    return max(found, key=found.count) if found else "127.0.0.1"


def for_collectives(towards: str, env: Mapping[str, str]) -> dict[str, str]:
    """gloo and NCCL on the interface that leads to the others, where nobody has chosen another.

    gloo would look up this host's own name, which often means the loopback (Debian writes it as
    127.0.1.1); NCCL would take the first that is no loopback, such as a container bridge.
    """
    address = source(towards)
    name = address and interface(address)
    wanted = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name else ()
    return {variable: str(name) for variable in wanted if variable not in env}


def free_port() -> int:
    """A port that nobody listens on at any address of this host, as torch's store will."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
