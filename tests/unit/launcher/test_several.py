"""Which hosts an attempt takes, where its logs go, and what is said to a call that cannot work."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ds_llama.errors import CallError
from ds_llama.launcher import several
from ds_llama.launcher.check import admit
from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.job import Job
from ds_llama.launcher.run import launch
from ds_llama.launcher.supervisor import Outcome

HOSTS = [Host(name, 1) for name in "abcd"]


@pytest.mark.parametrize(
    ("nodes", "down", "chosen"),
    [
        (None, "", "abcd"),
        (None, "b", "abcd"),  # there is no other
        (2, "", "ab"),
        (2, "a", "bc"),
        (3, "bd", "abc"),  # in the file's order
        (1, "abcd", "a"),
    ],
)
def test_hosts_of_an_attempt(nodes: int | None, down: str, chosen: str) -> None:
    found = several.choose(HOSTS, nodes, set(down))
    assert "".join(host.name for host in found) == chosen


def test_more_hosts_than_there_are() -> None:
    with pytest.raises(CallError, match="5 hosts are asked for, and there are 4") as caught:
        several.choose(HOSTS, 5)
    assert caught.value.where == "--nodes"
    assert caught.value.remedy == "give --nodes 4, or add hosts to the hostfile"


def test_logs_are_in_a_folder_of_the_attempts_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = several.job_of(HOSTS, ["train"], None, "ds_llama")
    assert re.fullmatch(rf"{tmp_path}/logs/\d{{8}}-\d{{6}}-\d+", job.logs)
    assert (job.cwd, job.ops, job.output) == (str(tmp_path), (), None)


@pytest.mark.parametrize(
    ("codes", "started"),
    [
        ([Outcome(0)], "ab"),
        ([Outcome(137), Outcome(0)], "ab ab"),
        ([Outcome(1, ("a",)), Outcome(1, ("b",)), Outcome(0)], "ab bc cd"),
        ([Outcome(1, ("a",)), Outcome(1), Outcome(1)], "ab bc bc"),
        ([Outcome(130, (), 2)], "ab"),
        ([Outcome(2)], "ab"),
    ],
)
def test_attempts(
    codes: list[Outcome], started: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is started after what; the last one's code is the launch's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(several, "_PAUSE_S", 0)
    jobs: list[Job] = []
    left = list(codes)

    class Played:
        def __init__(self, job: Job, transport: str) -> None:
            jobs.append(job)

        def run(self) -> Outcome:
            return left.pop(0)

    monkeypatch.setattr(several, "Supervisor", Played)
    settings: dict[str, Any] = {"module": "m", "launcher": "ssh", "nodes": 2, "restarts": 2}
    code = several.launch_on(HOSTS, ["first"], None, again=["again"], **settings)
    assert code == codes[-1].code
    assert " ".join("".join(host.name for host in job.hosts) for job in jobs) == started
    assert [job.arguments for job in jobs] == [("first",), ("again",), ("again",)][: len(jobs)]


@pytest.mark.parametrize(
    ("given", "what", "where"),
    [
        ({"hostfile": "h", "launcher": "rsh"}, "there is no launcher 'rsh'", "--launcher"),
        ({"nproc": 1, "nodes": 2}, "--nodes is for the hosts of a hostfile", "command line"),
        ({"nproc": 1, "wait_s": 1.0}, "--wait-for-hosts is for the hosts of", "command line"),
    ],
)
def test_calls_that_cannot_work(given: dict[str, Any], what: str, where: str) -> None:
    with pytest.raises(CallError, match=what) as caught:
        launch([], **given)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("nodes", "down", "unfit", "asked", "taken"),
    [
        (2, "", "", "ab", "ab"),
        (2, "", "a", "ab bc", "bc"),
        (2, "a", "b", "bc cd", "cd"),
        (2, "", "abc", "ab cd", ""),
        (None, "", "c", "abcd", ""),
        (2, "cd", "", "ab", "ab"),
        (4, "d", "", "abcd", "abcd"),  # lost once, and back
    ],
)
def test_spares_of_hosts_that_cannot_be_used(
    nodes: int | None,
    down: str,
    unfit: str,
    asked: str,
    taken: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    def ask(hosts: list[Host], run: None) -> set[str]:
        seen.append("".join(host.name for host in hosts))
        return {host.name for host in hosts} & set(unfit)

    monkeypatch.setattr(admit, "unfit", ask)
    found = several._fit(HOSTS, nodes, set(down), None)
    assert ("".join(host.name for host in found), " ".join(seen)) == (taken, asked)


@pytest.mark.parametrize(
    ("wait_s", "rounds", "taken", "said"),
    [
        (0.0, 1, "", "nothing is started: there is no spare for what cannot be used (--wait-for-"),
        (600.0, 4, "ab", "waiting for hosts, "),
        (15.0, 3, "", "cannot be used (waited 15 s)"),
    ],
)
def test_a_host_that_may_come_back_is_waited_for(
    wait_s: float,
    rounds: int,
    taken: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """For so long, and asked ever more rarely; here it is back after 15 s."""
    now, asked = [0.0], [0]

    def ask(hosts: list[Host], run: None) -> set[str]:
        asked[0] += 1
        return {"b"} if now[0] < 15.1 else set()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(admit, "unfit", ask)
    monkeypatch.setattr(several, "time", clock)
    found = several._wait_for_fit(HOSTS[:2], None, (), None, wait_s)
    assert "".join(host.name for host in found) == taken
    assert asked[0] == rounds
    assert said in capsys.readouterr().err
