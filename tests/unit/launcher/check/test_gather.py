"""Asking several hosts at once. The hosts are this machine, reached by `sh` where ssh would be."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ds_llama.launcher.check.answers import Heard
from ds_llama.launcher.check.findings import Expected, problems
from ds_llama.launcher.check.gather import Inquiry, gather
from ds_llama.launcher.check.limits import Limits
from ds_llama.launcher.check.reach import Fault, Reach
from ds_llama.launcher.hostfile import Host

# What stands before the probe on a host of that name.
HOSTS = {
    "well": "",
    "chatty": "echo welcome; echo 'quota: 7 %' >&2; echo -n 'no newline '; echo;",
    "gone": "echo 'sh: out of memory' >&2; exit 3;",
    "silent": "exec sleep 600;",
    "flood": "exec yes $(printf 'y%.0s' $(seq 5000));",
    "false": "exec sh -c 'while read line; do echo MARK nonsense; done';",
    "long": "head -c 9000000 /dev/zero | tr '\\0' x; echo;",
}


# For hosts that answer; what does not is waited for to the end.
LONG = Limits(60.0)


def words(host: str, remote: Sequence[str]) -> list[str]:
    mark = remote[6]
    return ["sh", "-c", HOSTS[host].replace("MARK", mark) + ' exec "$@"', "sh", *remote]


LOCAL = Reach(words, lambda host, stderr: Fault("ended", stderr.strip(), "see there"))


def ask(
    *names: str,
    reach: Reach = LOCAL,
    folder: Path | None = None,
    port: int = 0,
    limits: Limits = LONG,
) -> dict[str, Heard]:
    hosts = [Host(name, 1) for name in names]
    output = None if folder is None else str(folder / "out")
    env = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    inquiry = Inquiry(sys.executable, os.getcwd(), env, output=output, port=port)
    return {one.host.name: one for one in gather(hosts, reach, inquiry, limits)}


def test_hosts_that_are_well(tmp_path: Path) -> None:
    found = ask("well", "chatty", folder=tmp_path)
    for one in found.values():
        assert one.fault is None
        assert one.clock is not None
        assert abs(one.clock.ahead_s) <= one.clock.within_s + 0.01
        assert one.facts is not None
        assert one.facts.versions["ds_llama"]
    assert found["chatty"].pairs is not None
    assert found["chatty"].pairs.seen
    assert found["chatty"].pairs.reached["well"].error is None
    assert list(tmp_path.iterdir()) == []


def test_hosts_that_are_not() -> None:
    """Each has its own fault, and keeps nobody else waiting."""
    began = time.monotonic()
    found = ask(*HOSTS, limits=Limits(10.0))
    assert time.monotonic() - began < 100
    faults = {name: one.fault for name, one in found.items() if one.fault is not None}
    assert faults.pop("gone") == Fault("ended", "sh: out of memory", "see there")
    silent = faults.pop("silent")
    assert (silent.code, silent.message) == ("ssh-timeout", "it does not answer within 6 s")
    assert faults.pop("flood").message == "it says more than 8 MiB"
    assert faults.pop("long").message == "it says more than 8 MiB"
    assert faults.pop("false").message == "it answers something that is not JSON"
    assert faults == {}
    shown = problems(list(found.values()), Expected(sys.executable))
    errors = {each.host for each in shown if each.severity == "error"}
    assert errors >= {"gone", "silent", "flood", "long", "false"}


def test_a_host_that_stops_in_the_middle(tmp_path: Path) -> None:
    """What it was looking at is told."""
    fifo = tmp_path / "run.json"
    os.mkfifo(fifo)
    inquiry = Inquiry(sys.executable, os.getcwd(), files=(str(fifo),))
    [one] = gather([Host("well", 1)], LOCAL, inquiry, Limits(4.0))
    assert one.fault is not None
    assert one.fault.code == "host-slow"
    assert one.fault.message == f"it answers, and then nothing for 3 s while it looks at {fifo}"


def test_a_machine_without_ssh() -> None:
    missing = Reach(lambda host, remote: ["/no/such/ssh"], LOCAL.explain)
    fault = ask("well", reach=missing)["well"].fault
    assert fault is not None
    assert fault.code == "no-command"
    assert fault.message == "/no/such/ssh cannot be started here: No such file or directory"


def test_a_working_folder_that_is_not_there(tmp_path: Path) -> None:
    inquiry = Inquiry(sys.executable, str(tmp_path / "none"))
    [one] = gather([Host("well", 1)], LOCAL, inquiry, LONG)
    assert one.facts is not None
    assert one.facts.cwd_error == "No such file or directory"
