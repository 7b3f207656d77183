"""What hosts said, and what is wrong of it: every message is read here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.launcher.check.answers import Clock, Facts, Heard, Pairs, Ping
from ds_llama.launcher.check.findings import Expected, on_cpu, problems
from ds_llama.launcher.check.problems import Problem
from ds_llama.launcher.check.reach import Fault
from ds_llama.launcher.check.wants import Need
from ds_llama.launcher.hostfile import Host

PYTHON = "/opt/venv/bin/python"
GIB = 2**30
VERSIONS = {"torch": "2.13.0", "deepspeed": "0.19.8", "ds_llama": "0.1.0", "nccl": "2.27.5"}
PACKAGE = {"errors.py": "aa", "units.py": "bb"}
FACTS: dict[str, Any] = {
    "host_name": "node",
    "versions": VERSIONS,
    "package": PACKAGE,
    "memory": {"total_bytes": 64 * GIB, "available_bytes": 60 * GIB},
    "cores": 8,
    "interfaces": {"10.0.0.1": "eth0"},
    "folders": {
        path: {"at": path, "free_bytes": 100 * GIB, "inodes_left": 9, "writable": True}
        for path in ("/tmp", "out")
    },
    "files": {"run.json": "cc"},
    "port": 29500,
}
EXPECTED = Expected(
    PYTHON,
    "/work",
    PACKAGE,
    {"run.json": "cc"},
    port=29500,
    output="out",
    need=Need(host_bytes=GIB, device_bytes=0, nvme_bytes=0, checkpoint_bytes=10 * GIB, keep=3),
)
GPU = {"name": "H100", "driver": "570", "total_bytes": 80 * GIB, "used_bytes": 0}


def heard(name: str = "a", slots: int = 2, **changed: Any) -> Heard:
    """A host about which nothing is wrong, with some facts changed."""
    others = [other for other in ("a", "b", "c") if other != name]
    return Heard(
        Host(name, slots),
        ping=Ping(time_s=0.0, python=[3, 11, 7], at=PYTHON),
        clock=Clock(0.0, 0.01),
        facts=Facts.model_validate({**FACTS, "machine": f"m-{name}", **changed}),
        pairs=Pairs.model_validate({"reached": {each: {} for each in others}, "seen": None}),
    )


def one(found: list[Problem]) -> tuple[str, str, str, str]:
    """The only problem: code, severity, host, message."""
    assert len(found) == 1, found
    assert found[0].remedy
    return found[0].code, found[0].severity, found[0].host, found[0].message


def test_nothing_is_wrong() -> None:
    assert problems([heard("a"), heard("b"), heard("c")], EXPECTED) == []


@pytest.mark.parametrize(
    ("changed", "code", "severity", "message"),
    [
        (
            {"versions": {**VERSIONS, "torch": "2.12.0"}},
            "other-version",
            "error",
            "torch is 2.12.0, and 2.13.0 on the other hosts",
        ),
        (
            {"versions": {**VERSIONS, "nccl": "2.20"}},
            "other-version",
            "error",
            "nccl is 2.20, and 2.27.5 on the other hosts",
        ),
        (
            {"versions": {name: VERSIONS[name] for name in ("torch", "ds_llama", "nccl")}},
            "not-installed",
            "error",
            f"deepspeed is not installed for {PYTHON}",
        ),
        (
            {"package": {**PACKAGE, "units.py": "xx", "new.py": "yy"}},
            "other-code",
            "error",
            "its ds_llama is not this machine's: new.py, units.py differ",
        ),
        (
            {"package": {"errors.py": "aa"}},
            "other-code",
            "error",
            "its ds_llama is not this machine's: units.py differs",
        ),
        ({"files": {"run.json": None}}, "no-file", "error", "run.json cannot be read there"),
        (
            {"files": {"run.json": "xx"}},
            "other-file",
            "error",
            "run.json is another file than here",
        ),
        ({"cores": 1}, "cores", "warning", "slots=2 on 1 core"),
        (
            {"memory": {"total_bytes": GIB, "available_bytes": GIB}},
            "memory",
            "error",
            "its 2 ranks take 2 GiB of its memory, and it has 1 GiB",
        ),
        (
            {"memory": {"total_bytes": 8 * GIB, "available_bytes": GIB}},
            "memory",
            "warning",
            "its 2 ranks take 2 GiB of its memory, and 1 GiB are free now",
        ),
        (
            {"port": 4711, "port_error": "Address already in use"},
            "port",
            "error",
            "port 29500 cannot be listened on: address already in use",
        ),
        (
            {"runs": [{"pid": 7, "user": "eve", "command": "python -m x"}] * 3},
            "other-run",
            "warning",
            "process 7 of eve is of another run: python -m x (and 2 more)",
        ),
        (
            {"locks": [{"path": "/x/lock", "age_s": 7200.0, "held": False}]},
            "stale-lock",
            "warning",
            "a build was killed 2 h 00 min ago and left /x/lock, on which others wait",
        ),
        ({"machine": "m-a"}, "same-machine", "error", "it is the same machine as a"),
    ],
)
def test_one_host_of_three_is_different(
    changed: dict[str, Any], code: str, severity: str, message: str
) -> None:
    hosts = [heard("a"), heard("b", **changed), heard("c")]
    assert one(problems(hosts, EXPECTED)) == (code, severity, "b", message)


@pytest.mark.parametrize(
    ("path", "folder", "code", "message"),
    [
        (
            "/tmp",
            {"free_bytes": 4096},
            "disk-full",
            "the disk under /tmp is full: 4 KiB are left",
        ),
        (
            "/tmp",
            {"inodes_left": 0},
            "disk-full",
            "the disk under /tmp is full: no inode is left",
        ),
        (
            "out",
            {"free_bytes": GIB},
            "disk",
            "a checkpoint takes 10 GiB in out, and 1 GiB are left",
        ),
        (
            "out",
            {"writable": False, "at": "/data"},
            "no-write",
            "/data cannot be written to, where out will be",
        ),
    ],
)
def test_disks(path: str, folder: dict[str, Any], code: str, message: str) -> None:
    folders = FACTS["folders"]
    changed = {**folders, path: {**folders[path], **folder}}
    hosts = [heard("a"), heard("b", folders=changed)]
    assert one(problems(hosts, EXPECTED)) == (code, "error", "b", message)


def test_a_full_disk_is_one_problem() -> None:
    folders = FACTS["folders"]
    full = {path: {**folder, "at": "/", "free_bytes": 0} for path, folder in folders.items()}
    marker = {"path": "/", "error": "No space left on device"}
    found = problems([heard("a", folders=full, marker=marker)], EXPECTED)
    assert one(found)[:2] == ("disk-full", "error")


def test_room_for_all_checkpoints_that_are_kept() -> None:
    folders = FACTS["folders"]
    changed = {**folders, "out": {**folders["out"], "free_bytes": 39 * GIB}}
    many = "3 checkpoints, and one that is being written, take 40 GiB in out"
    message = f"{many}, and 39 GiB are left"
    found = problems([heard("a", folders=changed)], EXPECTED)
    assert one(found) == ("disk", "warning", "a", message)


def test_what_is_under_nvme() -> None:
    need = Need(host_bytes=0, device_bytes=0, nvme_bytes=60 * GIB, checkpoint_bytes=0, keep=1)
    folders = FACTS["folders"]
    nvme = {**folders["out"], "at": "/nvme"}
    expected = replace(EXPECTED, nvme=("/nvme",), need=need)
    found = problems([heard("a", folders={**folders, "/nvme": nvme})], expected)
    message = "the offload takes 120 GiB in /nvme, and 100 GiB are left"
    assert one(found) == ("disk", "error", "a", message)


def test_the_shared_folder() -> None:
    unseen = replace(heard("b"), pairs=Pairs(reached={}, seen=False))
    found = problems([heard("a", marker={"path": "/x/.m"}), unseen], EXPECTED)
    assert one(found)[::3] == ("not-shared", "out is not the same folder as on the first host")
    marker = {"path": "/x", "error": "Read-only file system"}
    found = problems([heard("a", marker=marker), heard("b")], EXPECTED)
    message = "nothing can be written in /x: read-only file system"
    assert one(found) == ("no-write", "error", "a", message)


def test_devices_are_compared_with_slots() -> None:
    expected = replace(EXPECTED, on_cpu=False)
    hosts = [heard("a", devices=[GPU, GPU]), heard("b", devices=[GPU]), heard("c")]
    found = problems(hosts, expected)
    assert [(each.host, each.message) for each in found] == [
        ("b", "slots=2, and 1 device is there"),
        ("c", "slots=2, and 0 devices are there"),
    ]
    assert not on_cpu(hosts)
    assert on_cpu([heard("a")])
    chosen = replace(heard("a", devices=[GPU] * 4), host=Host("a", 2, (1, 5)))
    assert one(problems([chosen], expected))[3] == "device 5 is asked for, and 4 devices are there"


def test_memory_of_devices() -> None:
    need = Need(host_bytes=0, device_bytes=79 * GIB, nvme_bytes=0, checkpoint_bytes=0, keep=1)
    expected = replace(EXPECTED, on_cpu=False, need=need)
    busy, small = {**GPU, "used_bytes": 4 * GIB}, {**GPU, "total_bytes": 40 * GIB}
    found = problems([heard("a", devices=[GPU, busy, small])], expected)
    message = "a rank takes 79 GiB of device 1, and 76 GiB are free now"
    assert one(found) == ("device-memory", "warning", "a", message)
    [error, _] = problems([heard("a", devices=[small, busy])], expected)
    assert error.message == "a rank takes 79 GiB of device 0, and it has 40 GiB"
    assert error.severity == "error"


def test_interfaces() -> None:
    hosts = [heard("a"), heard("b", interfaces={"10.0.0.2": "ib0"})]
    found = problems(hosts, replace(EXPECTED, interface="eth0"))
    assert one(found) == ("interface", "error", "b", "there is no interface eth0, and it has ib0")
    for wanted in ("ib,eth", "^docker", "=eth0,ib0"):
        assert problems(hosts, replace(EXPECTED, interface=wanted)) == []


def test_ways_between_hosts() -> None:
    reached = {each: {"error": "Connection refused"} for each in ("a", "c")}
    cut = Pairs.model_validate({"reached": reached, "seen": None})
    hosts = [heard("a"), replace(heard("b"), pairs=cut), heard("c")]
    message = "it does not get through to a (port 29500), c (port 29500): connection refused"
    assert one(problems(hosts, EXPECTED)) == ("no-way", "error", "b", message)


def test_a_lock_that_another_host_holds_is_not_stale() -> None:
    lock = {"path": "/home/x/lock", "age_s": 60.0}
    hosts = [
        heard("a", locks=[{**lock, "held": False}]),
        heard("b", locks=[{**lock, "held": True}]),
    ]
    assert problems(hosts, EXPECTED) == []


def test_ops_that_are_not_compiled_are_a_note() -> None:
    found = problems([heard("a", ops=["fused_adam"])], replace(EXPECTED, ops=("cpu_adam",)))
    message = "cpu_adam will be compiled there first: a minute or more"
    assert one(found) == ("no-op", "note", "a", message)


def test_clocks() -> None:
    late = replace(heard("b"), clock=Clock(-90.0, 0.2))
    found = problems([heard("a"), late], EXPECTED)
    message = "its clock is 1 min 30 s behind this machine's"
    assert one(found) == ("clock", "warning", "b", message)
    # What the round trip can explain is no difference.
    assert problems([replace(late, clock=Clock(8.0, 4.0))], EXPECTED) == []


@pytest.mark.parametrize(("version", "severity"), [([3, 11, 2], "warning"), ([3, 10, 7], "error")])
def test_other_pythons(version: list[int], severity: str) -> None:
    ping = Ping(time_s=0.0, python=version, at=PYTHON)
    found = problems([heard("a"), replace(heard("b"), ping=ping)], EXPECTED)
    text = ".".join(map(str, version))
    assert one(found)[1:] == (severity, "b", f"Python is {text}, and 3.11.7 on the other hosts")


def test_what_follows_from_one_problem_is_left_out() -> None:
    bare = Heard(Host("b", 2), ping=Ping(time_s=0.0, python=[3, 6, 8], at="/usr/bin/python3"))
    found = problems([heard("a"), bare], EXPECTED)
    message = f"there is no {PYTHON} (/usr/bin/python3 is Python 3.6.8)"
    assert one(found) == ("no-python", "error", "b", message)
    lost = Heard(Host("b", 2), fault=Fault("ssh-refused", "nobody listens", "start sshd"))
    assert one(problems([heard("a"), lost], EXPECTED)) == (
        *("ssh-refused", "error", "b", "nobody listens"),
    )
    homeless = replace(heard("b"), facts=Facts(cwd_error="No such file or directory"), pairs=None)
    message = "the working folder /work cannot be entered: No such file or directory"
    assert one(problems([heard("a"), homeless], EXPECTED)) == ("no-folder", "error", "b", message)


def test_the_first_of_two_is_the_one_that_counts() -> None:
    hosts = [heard("a"), heard("b", versions={**VERSIONS, "torch": "2.12.0"})]
    assert one(problems(hosts, EXPECTED))[2] == "b"


NAMES = st.sampled_from(["a", "b", "c"])


@given(
    versions=st.lists(st.sampled_from(["2.12", "2.13", None]), min_size=1, max_size=9),
    order=st.randoms(use_true_random=False),
)
def test_the_odd_ones_are_fewer_than_the_others(versions: list[str | None], order: Any) -> None:
    """Whatever hosts say: errors name the minority, and every host is named that says otherwise."""
    hosts = []
    for index, version in enumerate(versions):
        known = {**VERSIONS, "torch": version} if version else {"ds_llama": "0.1.0"}
        hosts.append(replace(heard("a", versions=known, machine=""), host=Host(f"n{index}", 1)))
    order.shuffle(hosts)
    found = [each for each in problems(hosts, EXPECTED) if each.message.startswith("torch is 2")]
    there = [version for version in versions if version is not None]
    assert len(found) * 2 <= len(there)
    assert len(found) == min(there.count("2.12"), there.count("2.13"))


@given(st.permutations(["a", "b", "c"]), NAMES)
def test_problems_stand_in_the_order_of_the_hosts(names: list[str], odd: str) -> None:
    changed = {"cores": 1, "port_error": "in use", "files": {}}
    hosts = [heard(name, **(changed if name == odd else {"cores": 1})) for name in names]
    found = problems(hosts, EXPECTED)
    assert [each.host for each in found] == sorted((e.host for e in found), key=names.index)
    assert [e.severity for e in found if e.host == odd] == ["error", "error", "warning"]
