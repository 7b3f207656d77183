"""Names by the real ssh client and the real resolver; nothing is connected to."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

import pytest

from ds_llama.errors import ConfigErrors, MachineError
from ds_llama.launcher.addresses import Target, duplicates, require_distinct, resolve
from ds_llama.launcher.hostfile import Host

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh client")

CONFIG = """
Host near
  HostName 127.0.0.1
Host shifted
  HostName localhost
  Port 2222
  User train
Host behind
  HostName inside.invalid
  ProxyJump gate.invalid
Host lost
  HostName nowhere.invalid
"""


def ssh(folder: Path, config: str = CONFIG) -> list[str]:
    path = folder / "config"
    path.write_text(config)
    return ["ssh", "-F", str(path)]


@needs_ssh
def test_names_ports_and_users_are_those_of_ssh(tmp_path: Path) -> None:
    hosts = [Host("near", 1), Host("shifted", 1), Host("me@behind", 1), Host("192.0.2.7", 1)]
    (near, shifted, behind, plain), errors = resolve(hosts, ssh=ssh(tmp_path))
    assert errors == []
    assert (near.hostname, near.port, near.addresses) == ("127.0.0.1", 22, {"this machine"})
    assert (shifted.hostname, shifted.port, shifted.user) == ("localhost", 2222, "train")
    assert (behind.hostname, behind.user) == ("inside.invalid", "me")
    assert (behind.proxy, behind.addresses) == ("gate.invalid", frozenset())
    assert (plain.proxy, plain.addresses) == ("", {"192.0.2.7"})


@needs_ssh
def test_two_names_of_one_machine(tmp_path: Path) -> None:
    hosts = [Host("near", 1), Host("behind", 2), Host("localhost", 2, where="hosts:3")]
    [error] = duplicates(resolve(hosts, ssh=ssh(tmp_path))[0])
    assert error.what == "localhost and near are one machine (this machine)"
    assert error.where == "hosts:3"
    assert error.remedy == "keep one of the two lines, with the sum of the slots"


@needs_ssh
def test_this_machine_by_its_own_name(tmp_path: Path) -> None:
    """127.0.1.1 on Debian, an interface's address elsewhere: neither is what localhost is."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, 22)
    except socket.gaierror:
        pytest.skip("this machine's own name does not resolve")
    found = duplicates(resolve([Host("localhost", 1), Host(name, 1)], ssh=ssh(tmp_path))[0])
    assert [error.what for error in found] == [
        f"{name} and localhost are one machine (this machine)"
    ]


@needs_ssh
def test_what_does_not_resolve(tmp_path: Path) -> None:
    hosts = [Host("lost", 1, where="hosts:1"), Host("near", 1), Host("gone.invalid", 1)]
    started = time.monotonic()
    [near], (lost, gone) = resolve(hosts, 2, ssh(tmp_path))
    assert time.monotonic() - started < 3
    assert near.host.name == "near"
    late = "was not resolved within 2 s"  # where a name server is silent
    assert (lost.where, gone.where) == ("hosts:1", "gone.invalid")
    named = "nowhere.invalid (ssh's HostName of lost) does not resolve: "
    assert lost.what.startswith(named) or lost.what == f"lost {late}"
    assert gone.what.startswith("gone.invalid does not resolve: ") or late in gone.what
    assert "HostName in ~/.ssh/config" in gone.remedy or late in gone.what


@needs_ssh
def test_one_that_does_not_end_holds_nobody_up(tmp_path: Path) -> None:
    config = 'Match originalhost slow exec "sleep 4"\n  User me\n' + CONFIG
    started = time.monotonic()
    _, [error] = resolve([Host("slow", 1), Host("near", 1)], 0.5, ssh(tmp_path, config))
    assert time.monotonic() - started < 2
    assert error.what == "slow was not resolved within 0.5 s"
    assert error.remedy == "see whether the name server answers"


@needs_ssh
def test_settings_that_ssh_does_not_take(tmp_path: Path) -> None:
    targets, [error] = resolve([Host("near", 1)], ssh=ssh(tmp_path, "Nonsense yes\n"))
    assert targets == []
    assert error.what.startswith("ssh does not take near: ")
    assert error.remedy == "mend ~/.ssh/config"


def test_no_ssh_at_all() -> None:
    with pytest.raises(MachineError, match="there is no ssh client") as caught:
        resolve([Host("near", 1)], ssh=["no-such-ssh"])
    assert (caught.value.where, caught.value.remedy) == ("no-such-ssh", "install openssh-client")


@needs_ssh
def test_a_host_that_is_nowhere_may_have_a_spare() -> None:
    hosts = [Host("nowhere.invalid", 1), Host("localhost", 1)]
    require_distinct(hosts, spares=True)
    with pytest.raises(ConfigErrors, match=r"nowhere\.invalid (does not resolve|was not resolved)"):
        require_distinct(hosts)
    with pytest.raises(ConfigErrors, match="are one machine"):
        require_distinct([*hosts, Host("127.0.0.1", 1)], spares=True)


def target(name: str, *addresses: str, port: int = 22, proxy: str = "") -> Target:
    return Target(Host(name, 1), name, port, "me", proxy, frozenset(addresses))


def test_any_shared_address_is_enough() -> None:
    found = duplicates(
        [target("a", "192.0.2.1", "2001:db8::1"), target("b", "192.0.2.2", "2001:db8::1")]
    )
    assert [error.what for error in found] == ["b and a are one machine (2001:db8::1)"]


def test_containers_of_one_host_are_not_one_machine() -> None:
    assert duplicates([target("a", "192.0.2.1"), target("b", "192.0.2.1", port=2222)]) == []


def test_behind_a_proxy_names_are_compared() -> None:
    one, same = target("x", proxy="gate"), target("X", proxy="gate")
    assert [error.what for error in duplicates([one, same])] == ["X and x are one machine (x)"]
    assert duplicates([one, target("x", proxy="other")]) == []


def test_many_hosts_at_once(tmp_path: Path) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("there is no ssh client")
    hosts = [Host(f"192.0.2.{n}", 1) for n in range(1, 40)]
    assert [one.host for one in resolve(hosts, ssh=ssh(tmp_path))[0]] == hosts
