"""256 hosts: what is ours scales, the hosts' part played by a shell each in the place of ssh."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import pytest

from ds_llama.errors import MachineError
from ds_llama.launcher import processes, supervisor
from ds_llama.launcher.check.findings import Expected, problems
from ds_llama.launcher.check.gather import Inquiry, gather
from ds_llama.launcher.check.limits import Limits
from ds_llama.launcher.check.reach import Fault, Reach
from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.job import Job
from ds_llama.launcher.supervisor import Supervisor

MANY = 256
HOSTS = tuple(Host(f"node{number}", 8) for number in range(MANY))
pytestmark = pytest.mark.timeout(400)

# An agent, whose index is the last word of its last argument. Number 200 has lost a rank; the
# others do nothing before they are told to stop.
AGENT = """\
#!/bin/sh
for last do :; done
index=${last##* }
say() { printf '{"ds_llama": %s}\\n' "$1"; }
say "\\"hello\\", \\"index\\": $index, \\"address\\": \\"192.0.2.1\\""
while read -r line; do
    case $line in
    *'"route"'*) say '"master", "address": "192.0.2.1", "port": 12345' ;;
    *'"job"'*) say '"ready"' ;;
    *'"start"'*)
        case $index in 200)
            failure='{"host": "node200", "what": "rank 1600 is gone", "code": 9, "rank": 1600}'
            say "\\"fallen\\", \\"failures\\": [$failure]"
            ;;
        esac
        ;;
    *'"stop"'*) break ;;
    esac
done
say "\\"ended\\", \\"unfinished\\": [$index], \\"failures\\": []"
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Of 2048 ranks; `ssh` is an agent."""
    program = tmp_path / "ssh"
    program.write_text(AGENT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("SILENT_S", "HELLO_S"):  # these agents do not beat, and stand on one machine
        monkeypatch.setattr(supervisor, name, 1000.0)
    monkeypatch.setitem(supervisor._STOP_S, "end", 1000.0)
    return Job(HOSTS, "module", (), logs=str(tmp_path / "logs"))


def test_one_of_many_hosts_ends_all(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    before = open_files()
    outcome = Supervisor(job, "ssh").run()
    assert open_files() == before
    assert (outcome.code, outcome.lost) == (9, ())
    assert "the run failed: node200, rank 1600, exit code 9; " in capfd.readouterr().err


def test_files_that_may_not_be_opened(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """More are allowed as far as the system lets us; beyond, it is said before anything starts."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: asked.append(limits))
    processes.allow_open_files(300)
    processes.allow_open_files(200)
    assert asked == [(300, 1024)]
    with pytest.raises(MachineError) as caught:
        processes.allow_open_files(2000)
    assert caught.value.what == "2000 files have to be open at once, and 1024 may be"
    assert caught.value.where == "ulimit -Hn"
    assert "--launcher pdsh" in caught.value.remedy


# A probe: it reads its program, and answers three pings, facts and, unasked, pairs.
PROBE = """\
head -c "$2" > /dev/null
for each in ping ping ping facts; do
    read -r line
    sed "s/^/$3 /; s/NAME/$4/" "$1/$each"
done
sed "s/^/$3 /" "$1/pairs"
exec cat > /dev/null
"""


def test_many_hosts_are_asked(tmp_path: Path) -> None:
    ping = {"time_s": 0.0, "python": list(sys.version_info[:3]), "at": sys.executable}
    facts = {"host_name": "a", "address": "192.0.2.1", "port": 1, "cores": 8, "machine": "NAME"}
    way = {"interface": "eth0", "address": "192.0.2.1", "round_trip_s": 0.001}
    pairs = {"reached": {host.name: way for host in HOSTS}, "seen": None}
    for name, answer in (("ping", ping), ("facts", facts), ("pairs", pairs)):
        (tmp_path / name).write_text(json.dumps({"answer": answer}) + "\n")

    def words(host: str, remote: list[str]) -> list[str]:
        return ["sh", "-c", PROBE, "sh", str(tmp_path), remote[5], remote[6], host]

    reach = Reach(words, lambda host, stderr: Fault("ended", stderr.strip(), "see there"))
    before = open_files()
    inquiry = Inquiry(sys.executable, os.getcwd())
    heard = gather(HOSTS, reach, inquiry, Limits(100.0))
    assert [one.fault for one in heard] == [None] * MANY
    assert all(one.pairs is not None and len(one.pairs.reached) == MANY for one in heard)
    found = {each.code for each in problems(heard, Expected(sys.executable))}
    assert "no-way" not in found
    assert open_files() == before


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
