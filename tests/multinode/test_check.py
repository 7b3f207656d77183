"""`ds-llama launch check` on hosts in namespaces: each has its one problem, and its one message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.multinode.cluster import Cluster

pytestmark = pytest.mark.timeout(400)
DRIVER = """
import contextlib, io, json, os, sys
from ds_llama.cli.main import main
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.update(asked["env"])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(asked["words"])
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""
UNFIT = """
from ds_llama.launcher.check.admit import unfit
from ds_llama.launcher.hostfile import Host
print(unfit([Host("node0", 1), Host("node1", 1)], None))
"""
# A second, where nothing else runs: the 10 s of a check are for hosts that do not stand on one.
WITHIN_S = 40.0
ENV = {"PYTHONPATH": str(Path(__file__).parents[2]), "DS_ACCELERATOR": "cpu"}
ENV["DS_LLAMA_CHECK_S"] = str(WITHIN_S)
EXTENSIONS = {"TORCH_EXTENSIONS_DIR": os.path.expanduser("~/.cache/torch_extensions")}

Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def check(cluster: Cluster) -> Iterator[Check]:
    """Exit code and document of `launch check --json`, in one process on the first host: what each
    command would import takes longer than the check. `running`: other processes on the hosts."""
    cluster.write_hostfile([1, 1, 1])
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    driver = cluster.start(0, sys.executable, "-c", DRIVER, env=ENV, **pipes)

    def run(
        *words: str,
        env: dict[str, str] | None = None,
        running: int = 0,
        within_s: float = WITHIN_S,
    ) -> tuple[int, dict[str, Any]]:
        options = ("--hostfile", "hostfile", "--json", "--no-allreduce")
        variables = {**(env or EXTENSIONS), "DS_LLAMA_CHECK_S": str(within_s)}
        asked = {"words": ["launch", "check", *words, *options], "env": variables}
        assert driver.stdin is not None
        assert driver.stdout is not None
        driver.stdin.write(json.dumps(asked) + "\n")
        driver.stdin.flush()
        code, out, err = json.loads(driver.stdout.readline())
        assert err == ""
        document: dict[str, Any] = json.loads(out)  # nothing else is printed there
        assert document["took_s"] < within_s
        until(lambda: sum(len(cluster.processes(host)) for host in range(3)) == running + 1)
        return code, document

    with driver:  # ends with its stdin
        yield run


def until(true: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Wait; a check's probes, for one, end by themselves when it has ended."""
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_open(cluster: Cluster, host: int, path: Path) -> bool:
    """Whether a process of the host has that file open."""
    for process in cluster.processes(host):
        with suppress(psutil.Error):
            if str(path) in [file.path for file in process.open_files()]:
                return True
    return False


def each_of(document: dict[str, Any], *hosts: str) -> list[dict[str, str]]:
    """The one problem of each of these hosts; nobody else has any."""
    found: list[dict[str, str]] = document["problems"]
    assert tuple(each["host"] for each in found) == hosts, found
    errors = {each["host"] for each in found if each["severity"] == "error"}
    assert {host["name"] for host in document["hosts"] if not host["ok"]} == errors
    assert all(each["remedy"] for each in found)
    return found


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


def test_a_good_cluster(cluster: Cluster, check: Check) -> None:
    code, document = check()
    assert (code, document["problems"], document["allreduce"]) == (0, [], None)
    names = [host["name"] for host in document["hosts"]]
    assert names == cluster.names
    facts = document["hosts"][1]["facts"]
    assert facts["host_name"] == "node1"
    assert facts["versions"].keys() >= {"torch", "deepspeed", "ds_llama"}
    assert (facts["address"], facts["interfaces"]) == ("10.77.0.11", {"10.77.0.11": "eth0"})
    assert facts["reached"]["node2"]["interface"] == "eth0"
    assert abs(facts["clock_ahead_s"]) < 1.0


def test_a_key_that_is_refused_and_a_host_that_is_not_known(cluster: Cluster, check: Check) -> None:
    cluster.refuse_key(1)
    cluster.forget_host_key(2)
    known = cluster.folder / "node0/home/.ssh/known_hosts"
    before = known.read_bytes()
    try:
        code, document = check()
        known_then = known.read_bytes()
    finally:
        cluster.accept_key(1)
        cluster.know_host_keys()
    refused, unknown = each_of(document, "node1", "node2")
    assert (code, refused["code"]) == (1, "ssh-permission")
    assert refused["remedy"] == "put your key there: ssh-copy-id node1"
    assert unknown["code"] == "ssh-host-key-unknown"
    assert known_then == before  # and nothing was written there


def test_silent_hosts(cluster: Cluster, check: Check) -> None:
    """One is cut off; the other accepts, and then nothing comes."""
    cluster.link(1, "down")
    os.kill(cluster.pid(2), signal.SIGSTOP)
    try:
        code, document = check(within_s=20.0)
    finally:
        os.kill(cluster.pid(2), signal.SIGCONT)
        cluster.link(1, "up")
    cut, stopped = each_of(document, "node1", "node2")
    assert code == 1
    assert cut["code"] in ("ssh-timeout", "ssh-no-route")
    assert stopped["code"] == "ssh-timeout"


def test_no_python_and_another_machine_under_that_name(cluster: Cluster, check: Check) -> None:
    """The environment is not on node1; node2's key is not the one that is known."""
    known = cluster.folder / "node0/home/.ssh/known_hosts"
    lines = known.read_text().splitlines()
    other = (cluster.folder / "key.pub").read_text().split()[:2]
    known.write_text("\n".join([*lines[:2], " ".join(["node2", *other]), ""]))
    try:
        with mounted(cluster, 1, "-t", "tmpfs", "tmpfs", str(Path(sys.executable).parent)):
            code, document = check()
    finally:
        cluster.know_host_keys()
    bare, changed = each_of(document, "node1", "node2")
    assert (code, bare["code"]) == (1, "no-python")
    assert bare["message"].startswith("there is no ")
    assert sys.executable in bare["message"]
    assert (changed["code"], changed["remedy"].split(": ")[1]) == (
        *("ssh-host-key-changed", "ssh-keygen -R node2"),
    )


def test_other_versions_and_other_code(cluster: Cluster, check: Check, tmp_path: Path) -> None:
    version = metadata.version("torch")
    own = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
    other, changed = tmp_path / "version.py", tmp_path / "loop.py"
    other.write_text("__version__ = '1.13.1'\n")
    loop = Path(__file__).parents[2] / "ds_llama/trainer/loop.py"
    changed.write_text(loop.read_text() + "# tried something\n")
    with (
        mounted(cluster, 1, "--bind", str(changed), str(loop)),
        mounted(cluster, 2, "--bind", str(other), str(own)),
    ):
        code, document = check()
    edited, older = each_of(document, "node1", "node2")
    assert (code, edited["code"], older["code"]) == (1, "other-code", "other-version")
    assert edited["message"] == "its ds_llama is not this machine's: trainer/loop.py differs"
    assert older["message"] == f"torch is 1.13.1, and {version} on the other hosts"


def test_a_full_disk(cluster: Cluster, check: Check, tmp_path: Path) -> None:
    env = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    with mounted(cluster, 1, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)):
        code, document = check(env=env)
    [problem] = each_of(document, "node1")
    assert (code, problem["code"]) == (1, "disk-full")
    assert problem["message"] == f"the disk under {tmp_path} is full: 64 KiB are left"


def test_a_build_that_was_killed(cluster: Cluster, check: Check, tmp_path: Path) -> None:
    env = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    code, document = check(env=env)
    problems = each_of(document, "node0", "node1", "node2")  # they share the folder
    assert {(each["code"], each["severity"]) for each in problems} == {("stale-lock", "warning")}
    assert code == 0
    with running(cluster, 1, "tail", "-f", str(lock)):
        until(lambda: has_open(cluster, 1, lock))
        assert check(env=env, running=1)[1]["problems"] == []  # somebody is building


def test_a_run(cluster: Cluster, check: Check, tmp_path: Path) -> None:
    """Its files, and the folder that it writes to, on every host."""
    folder = cluster.folder
    run = {"model": {"preset": "debug"}, "data": {"train": "shard"}, "output": "runs/debug"}
    (folder / "run.json").write_text(json.dumps({**run, "train": {"micro_batch_size": 1}}))
    for name in ("shard.bin", "shard.idx"):
        (folder / name).write_bytes(b"tokens")
    (folder / "runs").mkdir()
    code, document = check("run.json")
    assert (code, [each for each in document["problems"] if each["severity"] != "note"]) == (0, [])
    assert list((folder / "runs").iterdir()) == []  # what was written there is gone
    other = tmp_path / "shard.idx"
    other.write_bytes(b"other")
    with (
        mounted(cluster, 1, "--bind", str(other), str(folder / "shard.idx")),
        mounted(cluster, 2, "-t", "tmpfs", "tmpfs", str(folder / "runs")),
    ):
        code, document = check("run.json")
    changed, alone = each_of(document, "node1", "node2")
    assert (code, changed["code"], alone["code"]) == (1, "other-file", "not-shared")
    assert changed["message"] == "shard.idx is another file than here"
    assert alone["message"] == "runs/debug is not the same folder as on the first host"


def test_a_port_that_is_taken(cluster: Cluster, check: Check) -> None:
    server = "import socket, time; s = socket.create_server(('', 29500)); time.sleep(600)"
    with running(cluster, 0, sys.executable, "-c", server):
        until(lambda: bool(cluster.run(0, "ss", "-ltnH", "sport = :29500").stdout))
        code, document = check("--master-port", "29500", running=1)
    [problem] = each_of(document, "node0")
    assert (code, problem["code"]) == (1, "port")
    assert problem["message"] == "port 29500 cannot be listened on: address already in use"


def test_two_hosts_that_do_not_reach_each_other(cluster: Cluster, check: Check) -> None:
    route = ("unreachable", f"{cluster.address(2)}/32")
    assert cluster.run(1, "ip", "route", "add", *route).returncode == 0
    try:
        code, document = check()
    finally:
        cluster.run(1, "ip", "route", "del", *route)
    there, back = each_of(document, "node1", "node2")
    assert (code, there["code"], back["code"]) == (1, "no-way", "no-way")
    assert there["message"].startswith("it does not get through to node2 (port ")
    assert there["message"].endswith(": no route to host")
    assert back["message"].endswith(": no answer within 6 s")


def test_a_person_gets_a_table(cluster: Cluster, check: Check) -> None:
    cluster.refuse_key(1)
    try:
        words = ("-m", "ds_llama", "launch", "check", "--hostfile", "hostfile")
        done = cluster.run(0, sys.executable, *words, env={**ENV, "COLUMNS": "50"})
    finally:
        cluster.accept_key(1)
    assert (done.returncode, done.stderr) == (1, "")
    text = " ".join(done.stdout.split())
    assert "ssh-copy-id node1" in text
    assert text.endswith(": 1 error")
    assert max(map(len, done.stdout.splitlines())) <= 50


def test_all_ranks_add_up(cluster: Cluster, check: Check) -> None:
    """A real all-reduce, by the way on which a training starts its ranks."""
    cluster.write_hostfile([1, 1], "two")
    words = ("-m", "ds_llama", "launch", "check", "--hostfile", "two", "--json")
    done = cluster.run(0, sys.executable, *words, env={**ENV, "OMP_NUM_THREADS": "1"})
    document = json.loads(done.stdout)
    found = document["allreduce"]
    assert (done.returncode, document["problems"], done.stderr) == (0, [], ""), found
    assert (found["ranks"], found["backend"]) == (2, "gloo")
    assert found["interfaces"] == {"node0": "eth0", "node1": "eth0"}
    assert found["took_s"] < 2 * WITHIN_S


def test_train_asks_first(cluster: Cluster) -> None:
    """And starts nothing where that would end in a failure."""
    run = {"model": {"preset": "debug"}, "data": {"train": "shard"}, "output": "runs/asked"}
    (cluster.folder / "asked.json").write_text(json.dumps(run))
    for name in ("shard.bin", "shard.idx"):
        (cluster.folder / name).write_bytes(b"tokens")
    cluster.write_hostfile([1, 1], "two")
    cluster.refuse_key(1)
    try:
        words = ("-m", "ds_llama", "train", "asked.json", "--hostfile", "two")
        done = cluster.run(0, sys.executable, *words, env=ENV)
    finally:
        cluster.accept_key(1)
    assert (done.returncode, done.stdout) == (1, "")
    first, *_ = done.stderr.splitlines()
    assert first.startswith("error: it lets you in with none of your keys")
    assert "where: node1\nremedy: put your key there: ssh-copy-id node1\n" in done.stderr
    *_, checked, last = done.stderr.splitlines()
    assert checked.startswith("2 hosts checked in ")
    assert checked.endswith(": 1 cannot be used")
    assert last.startswith("nothing is started: there is no spare for what cannot be used (--wait")
    assert not (cluster.folder / "runs/asked").exists()
    words = ("-c", UNFIT)
    done = cluster.run(0, sys.executable, *words, env=ENV)
    assert done.stdout == "set()\n"
    assert done.stderr.endswith(": ready\n")
    assert len(done.stderr.splitlines()) == 1
