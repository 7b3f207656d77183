"""A host's own addresses, a listener for the others, and the way to each of them."""

import contextlib
import fcntl
import os
import socket
import struct
import threading
import time

from ds_llama.launcher.check.probe.facts import read


def machine() -> str:
    """One and the same for two names of one host; containers of a host with own networks differ."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/net")
    return (read("/proc/sys/kernel/random/boot_id").strip() or socket.gethostname()) + space


def interfaces() -> "dict[str, str]":
    """Address to interface, loopback left out."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(opened.fileno(), 0x8915, request)  # SIOCGIFADDR
                found[socket.inet_ntoa(answer[20:24])] = name
    for line in read("/proc/net/if_inet6").splitlines():
        digits, _, _, scope, _, name = line.split()
        if scope == "00":  # global
            found[socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))] = name
    return {address: name for address, name in found.items() if not is_loopback(address)}


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def own_address() -> "str | None":
    """Where others may reach this host: what ssh was connected to, or its own first address."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    if len(connection) == 4 and "%" not in connection[2]:
        return connection[2]
    known = interfaces()
    with contextlib.suppress(OSError):
        for entry in socket.getaddrinfo(socket.gethostname(), None):
            if entry[4][0] in known:
                return str(entry[4][0])
    return next(iter(known), None)


class Listener:
    """Answers whoever says the token, until the process ends."""

    def __init__(self, port: int, token: str) -> None:
        self.error, self.port = None, port  # type: str | None, int
        self.token = token.encode()
        wanted = [port, 0] if port else [0]
        for number in wanted:
            try:
                self.socket = self.opened(number)
            except OSError as error:
                self.error = error.strerror or str(error)
                continue
            self.port = self.socket.getsockname()[1]
            thread = threading.Thread(target=self.serve, daemon=True)
            thread.start()
            return

    @staticmethod
    def opened(port: int) -> "socket.socket":
        family = socket.AF_INET6 if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6") else 2
        opened = socket.socket(family, socket.SOCK_STREAM)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family != socket.AF_INET:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            opened.bind(("", port))
            opened.listen(1024)
        except OSError:
            opened.close()
            raise
        return opened

    def serve(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                other, _ = self.socket.accept()
                threading.Thread(target=self.answer, args=(other,), daemon=True).start()

    def answer(self, other: "socket.socket") -> None:
        with contextlib.suppress(OSError), other:
            other.settimeout(5)
            if other.recv(256) == self.token:
                other.sendall(b"yes " + self.token)


def reach(address: str, port: int, token: str, timeout_s: float) -> "dict[str, object]":
    """The interface and the round trip to another host's listener, or what went wrong."""
    began = time.time()
    try:
        with socket.create_connection((address, port), timeout_s) as opened:
            took_s = time.time() - began
            opened.settimeout(timeout_s)
            opened.sendall(token.encode())
            if opened.recv(256) != b"yes " + token.encode():
                return {"error": "something else answers there"}
            own = str(opened.getsockname()[0]).replace("::ffff:", "")
    except socket.timeout:
        return {"error": f"no answer within {timeout_s:g} s"}
    except OSError as error:
        return {"error": error.strerror or str(error)}
    return {"interface": interfaces().get(own, ""), "address": own, "round_trip_s": took_s}
