"""The hosts that the tests of this folder stand on are hosts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.multinode.cluster import Cluster, missing

pytestmark = pytest.mark.timeout(400)
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30")

HOLDER = """
import sys, time
from pathlib import Path
from tests.multinode.cluster import Cluster
with Cluster(2, Path(sys.argv[1])) as cluster:
    print(*(started.pid for started in cluster._hosts.values()), cluster.pid(0), cluster.pid(1))
    sys.stdout.flush()
    time.sleep(600)
"""


def test_hosts_reach_each_other_by_ssh_and_pdsh(cluster: Cluster) -> None:
    done = cluster.run(0, *SSH, "node2", "hostname; echo $HOME; ps -e | wc -l")
    name, home, count = done.stdout.split()
    assert (name, home) == ("node2", f"{cluster.folder}/home"), done.stderr
    assert int(count) < 20  # sshd, what it has started, and nothing of other hosts
    done = cluster.run(1, "pdsh", "-R", "ssh", "-w", "node0,node2", "hostname")
    assert sorted(done.stdout.splitlines()) == ["node0: node0", "node2: node2"], done.stderr


def test_a_key_that_is_refused_and_a_host_that_is_unknown(cluster: Cluster) -> None:
    cluster.refuse_key(1)
    assert "Permission denied" in cluster.run(0, *SSH, "node1", "true").stderr
    cluster.accept_key(1)
    cluster.forget_host_key(1)
    assert "Host key verification failed" in cluster.run(0, *SSH, "node1", "true").stderr
    cluster.know_host_keys()
    assert cluster.run(0, *SSH, "node1", "true").returncode == 0


def test_what_ends_a_host_and_what_cuts_it_off(new_cluster: Callable[[int], Cluster]) -> None:
    cluster = new_cluster(2)
    cluster.link(1, "down")
    assert cluster.run(0, *SSH, "node1", "true").returncode == 255
    assert cluster.processes(1) == []
    cluster.link(1, "up")
    began = time.monotonic()
    with cluster.start(0, *SSH, "node1", "sleep 500", stderr=subprocess.PIPE) as session:
        while not any(process.info["name"] == "sleep" for process in cluster.processes(1)):
            assert time.monotonic() < began + 60
            time.sleep(0.05)
        cluster.crash(1)
        assert session.wait(60) == 255  # it hears of it
    cluster.poweroff(1)
    cluster.boot(1)
    assert cluster.run(0, *SSH, "node1", "true").returncode == 0


def test_a_command_that_takes_too_long_ends(cluster: Cluster) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        cluster.run(0, "sleep", "500", timeout_s=0.3)
    assert [process.info["name"] for process in cluster.processes(0)] == []


def test_nothing_stays_of_a_cluster_whose_test_was_killed(
    can_have_hosts: None, tmp_path: Path, repository: Path
) -> None:
    env = os.environ | {"PYTHONPATH": str(repository)}
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "hosts")]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        pids = [int(pid) for pid in holder.stdout.readline().split()]
        assert len(pids) == 4
        holder.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert missing() == "hosts in namespaces need root"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("tests.multinode.cluster._TOOLS", ("ip", "no-such-tool"))
    assert "need no-such-tool (iproute2" in str(missing())
