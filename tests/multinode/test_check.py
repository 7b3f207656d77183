"""`ds-llama launch check` on hosts in namespaces: each has its one problem, and its one message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.multinode.cluster import Cluster

pytestmark = pytest.mark.timeout(60)
# The check itself; the command imports pydantic and rich before it, on a machine that may be busy.
LIMIT_S = 10.0


def check(
    cluster: Cluster, *words: str, env: dict[str, str] | None = None, running: int = 0
) -> tuple[int, dict[str, Any]]:
    """Exit code and document of `launch check --json` on the first host; `running`: processes that
    the test has on the hosts."""
    cluster.write_hostfile([1, 1, 1])
    command = (sys.executable, "-m", "ds_llama", "launch", "check", *words)
    options = ("--hostfile", "hostfile", "--json", "--no-allreduce")
    own = {"PYTHONPATH": str(Path(__file__).parents[2]), "DS_ACCELERATOR": "cpu"}
    done = cluster.run(0, *command, *options, env={**own, **(env or {})})
    assert done.stderr == ""
    document: dict[str, Any] = json.loads(done.stdout)  # nothing else is printed there
    assert document["took_s"] < LIMIT_S
    # the probes are gone
    assert len([each for host in range(3) for each in cluster.processes(host)]) == running
    return done.returncode, document


def only(document: dict[str, Any], *hosts: str) -> dict[str, str]:
    """The one problem that each of these hosts has, and nobody else."""
    found = document["problems"]
    assert tuple(each["host"] for each in found) == hosts, found
    assert len({each["code"] for each in found}) == 1
    errors = {each["host"] for each in found if each["severity"] == "error"}
    assert {host["name"] for host in document["hosts"] if not host["ok"]} == errors
    first: dict[str, str] = found[0]
    assert first["remedy"]
    return first


@contextmanager
def mounted(cluster: Cluster, host: int, *words: str) -> Iterator[None]:
    """Something else at a place of one host alone."""
    assert cluster.run(host, "mount", *words).returncode == 0
    try:
        yield
    finally:
        assert cluster.run(host, "umount", words[-1]).returncode == 0


@contextmanager
def running(cluster: Cluster, host: int, *words: str) -> Iterator[None]:
    """A process of somebody else on a host."""
    started = cluster.start(host, *words, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        cluster.signal(started, signal.SIGKILL)
        started.wait()


def test_a_good_cluster(cluster: Cluster) -> None:
    code, document = check(cluster)
    assert (code, document["problems"], document["allreduce"]) == (0, [], None)
    names = [host["name"] for host in document["hosts"]]
    assert names == cluster.names
    facts = document["hosts"][1]["facts"]
    assert facts["host_name"] == "node1"
    assert facts["versions"].keys() >= {"torch", "deepspeed", "ds_llama"}
    assert (facts["address"], facts["interfaces"]) == ("10.77.0.11", {"10.77.0.11": "eth0"})
    assert facts["reached"]["node2"]["interface"] == "eth0"
    assert abs(facts["clock_ahead_s"]) < 1.0


def test_what_keeps_ssh_out(cluster: Cluster) -> None:
    """One host refuses the key, the other is not known: both are told, each as what it is."""
    cluster.refuse_key(1)
    cluster.forget_host_key(2)
    known = cluster.folder / "node0/home/.ssh/known_hosts"
    before = known.read_bytes()
    try:
        code, document = check(cluster)
        assert code == 1
        found = {each["host"]: each for each in document["problems"]}
        assert found["node1"]["code"] == "ssh-permission"
        assert found["node1"]["remedy"] == "put your key there: ssh-copy-id node1"
        assert found["node2"]["code"] == "ssh-host-key-unknown"
        assert len(document["problems"]) == 2
        assert known.read_bytes() == before
        # a key that is not the one that is known
        other = (cluster.folder / "key.pub").read_text().split()[:2]
        known.write_text(before.decode() + " ".join(["node2", *other]) + "\n")
        cluster.accept_key(1)
        code, document = check(cluster)
        assert only(document, "node2")["code"] == "ssh-host-key-changed"
    finally:
        cluster.accept_key(1)
        cluster.know_host_keys()


def test_a_silent_host(cluster: Cluster) -> None:
    cluster.link(1, "down")
    try:
        code, document = check(cluster)
        assert code == 1
        assert only(document, "node1")["code"] in ("ssh-timeout", "ssh-no-route")
    finally:
        cluster.link(1, "up")
    # sshd accepts, and then nothing comes
    os.kill(cluster.pid(2), signal.SIGSTOP)
    try:
        code, document = check(cluster)
        assert only(document, "node2")["code"] == "ssh-timeout"
    finally:
        os.kill(cluster.pid(2), signal.SIGCONT)


def test_no_python(cluster: Cluster) -> None:
    """The environment is not on that host; another Python may be, and then says so."""
    with mounted(cluster, 1, "-t", "tmpfs", "tmpfs", str(Path(sys.executable).parent)):
        code, document = check(cluster)
    problem = only(document, "node1")
    assert (code, problem["code"]) == (1, "no-python")
    assert problem["message"].startswith("there is no ")
    assert sys.executable in problem["message"]


def test_other_versions_and_other_code(cluster: Cluster, tmp_path: Path) -> None:
    import torch

    own = Path(torch.__file__).parent / "version.py"
    other = tmp_path / "version.py"
    other.write_text("__version__ = '1.13.1'\n")
    with mounted(cluster, 2, "--bind", str(other), str(own)):
        code, document = check(cluster)
    problem = only(document, "node2")
    assert (code, problem["code"]) == (1, "other-version")
    assert problem["message"] == f"torch is 1.13.1, and {torch.__version__} on the other hosts"
    loop = Path(__file__).parents[2] / "ds_llama/trainer/loop.py"
    changed = tmp_path / "loop.py"
    changed.write_text(loop.read_text() + "# tried something\n")
    with mounted(cluster, 1, "--bind", str(changed), str(loop)):
        code, document = check(cluster)
    problem = only(document, "node1")
    assert (code, problem["code"]) == (1, "other-code")
    assert problem["message"] == "its ds_llama is not this machine's: trainer/loop.py differs"


def test_a_full_disk_and_a_build_that_was_killed(cluster: Cluster, tmp_path: Path) -> None:
    full = tmp_path / "extensions"
    full.mkdir()
    env = {"TORCH_EXTENSIONS_DIR": str(full)}
    with mounted(cluster, 1, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)):
        code, document = check(cluster, env=env)
    problem = only(document, "node1")
    assert (code, problem["code"]) == (1, "disk-full")
    assert problem["message"] == f"the disk under {full} is full: 64 KiB are left"
    lock = full / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    code, document = check(cluster, env=env)
    problem = only(document, "node0", "node1", "node2")  # they share the folder
    assert (code, problem["code"], problem["severity"]) == (0, "stale-lock", "warning")
    with running(cluster, 1, "tail", "-f", str(lock)):
        code, document = check(cluster, env=env, running=1)
        assert document["problems"] == []  # somebody is building


def test_a_run(cluster: Cluster, tmp_path: Path) -> None:
    """Its files, and the folder that it writes to, on every host."""
    folder = cluster.folder
    run = {"model": {"preset": "debug"}, "data": {"train": "shard"}, "output": "runs/debug"}
    (folder / "run.json").write_text(json.dumps({**run, "train": {"micro_batch_size": 1}}))
    for name in ("shard.bin", "shard.idx"):
        (folder / name).write_bytes(b"tokens")
    (folder / "runs").mkdir()
    code, document = check(cluster, "run.json")
    assert (code, document["problems"]) == (0, [])
    assert list((folder / "runs").iterdir()) == []  # what was written there is gone
    with mounted(cluster, 2, "-t", "tmpfs", "tmpfs", str(folder / "runs")):
        code, document = check(cluster, "run.json")
    problem = only(document, "node2")
    assert (code, problem["code"]) == (1, "not-shared")
    assert problem["message"] == "runs/debug is not the same folder as on the first host"
    other = tmp_path / "shard.idx"
    other.write_bytes(b"other")
    with mounted(cluster, 1, "--bind", str(other), str(folder / "shard.idx")):
        code, document = check(cluster, "run.json")
    assert only(document, "node1")["message"] == "shard.idx is another file than here"


def test_a_port_that_is_taken(cluster: Cluster) -> None:
    server = "import socket, time; s = socket.create_server(('', 29500)); time.sleep(50)"
    with running(cluster, 0, sys.executable, "-c", server):
        deadline = time.monotonic() + 10
        while not cluster.run(0, "ss", "-ltnH", "sport = :29500").stdout:
            assert time.monotonic() < deadline
        code, document = check(cluster, running=1)
        problem = only(document, "node0")
        assert (code, problem["code"]) == (1, "port")
        assert problem["message"] == "port 29500 cannot be listened on: address already in use"
        assert check(cluster, "--master-port", "29501", running=1)[0] == 0


def test_a_person_gets_a_table(cluster: Cluster) -> None:
    cluster.refuse_key(1)
    try:
        words = ("launch", "check", "--hostfile", str(cluster.write_hostfile([1, 1, 1])))
        env = {"PYTHONPATH": str(Path(__file__).parents[2]), "DS_ACCELERATOR": "cpu"}
        for columns in ("50", "160"):
            env["COLUMNS"] = columns
            done = cluster.run(0, sys.executable, "-m", "ds_llama", *words, env=env)
            assert (done.returncode, done.stderr) == (1, "")
            text = " ".join(done.stdout.split())
            assert "ssh-copy-id node1" in text
            assert text.endswith(": 1 error")
            assert max(map(len, done.stdout.splitlines())) <= int(columns)
    finally:
        cluster.accept_key(1)


def test_a_hostfile_that_is_not_there(cluster: Cluster) -> None:
    words = ("launch", "check", "--hostfile", "none", "--json")
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = cluster.run(0, sys.executable, "-m", "ds_llama", *words, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the hostfile cannot be read")
