"""Launches over hosts in namespaces: each ends within its time, with its code, and leaves nothing.

The ranks do as they are told and compute nothing. The table of all events under real training is
`python -m tests.campaigns.multinode`.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from ds_llama.launcher.agent import SAVE_S
from tests.multinode.cluster import Cluster
from tests.multinode.launched import Launched, kill

# Limits are for what hangs: ten times what a machine takes that does nothing else, and more.
pytestmark = pytest.mark.timeout(400)
NASTY = ["a b", "x;y", 'it\'s "q"', "--", "$HOME", "", "-x", "*", "`id`", "a\nb", "é", "%n", "\\"]

Launch = Callable[..., Launched]


@pytest.fixture
def launch(cluster: Cluster, tmp_path: Path) -> Iterator[Launch]:
    """Starts two ranks on two hosts, and waits until they are up."""
    with ExitStack() as stack:

        def start(**settings: object) -> Launched:
            launched = Launched(cluster, tmp_path / "launch", (1, 1), **settings)
            stack.callback(launched.close)
            launched.wait_until_up()
            return launched

        yield start


@pytest.fixture(scope="module", autouse=True)
def other(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A launch on the same hosts that lives through all that happens to the others."""
    launched = Launched(cluster, tmp_path_factory.mktemp("other") / "other", (1, 2), NASTY)
    with closing(launched):
        launched.wait_until_up()
        yield launched


@pytest.fixture(scope="module")
def cut_off(
    new_cluster: Callable[[int], Cluster], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launched]:
    """A launch one of whose hosts has fallen silent; it is looked at when that has taken effect."""
    hosts = new_cluster(2)
    launched = Launched(hosts, tmp_path_factory.mktemp("cut") / "cut", (1, 1))
    with closing(launched):
        launched.wait_until_up()
        hosts.link(1, "down")
        yield launched


@pytest.mark.parametrize("launcher", ["ssh", "pdsh"])
def test_a_killed_rank_is_named(launch: Launch, cut_off: Launched, launcher: str) -> None:
    launched = launch(launcher=launcher)
    launched.tell(1, "signal 9")
    assert launched.end() == 137
    text = launched.err.read_text()
    assert "the last lines of rank 1 on node1:\n  rank 1 is up\n" in text
    assert "error: rank 1 on node1 was ended by signal 9 (SIGKILL)\nwhere: node1:/" in text
    assert "remedy: see the end of `dmesg` on node1" in text
    assert launched.last_line.startswith("the run failed: node1, rank 1, exit code 137, log node1:")
    log = launched.last_line.partition("log node1:")[2].partition(";")[0]
    assert Path(log).read_text() == "rank 1 is up\n"


@pytest.mark.parametrize(
    ("do", "code", "said"),
    [
        ("exit 3", 3, "error: rank 1 on node1 ended with exit code 3\n"),
        ("raise it is lost", 1, "  ValueError: it is lost\n"),
        ("leave", 1, "error: rank 1 on node1 left without having finished\n"),
    ],
)
def test_a_rank_that_fails(launch: Launch, do: str, code: int, said: str) -> None:
    launched = launch()
    if do == "leave":
        launched.tell(0, "finish")
    launched.tell(1, do)
    assert launched.end() == code
    assert said in launched.err.read_text()
    assert launched.last_line.startswith(f"the run failed: node1, rank 1, exit code {code}, log ")


@pytest.mark.parametrize(
    ("victim", "code", "who"), [("launch.py", 137, "node1, rank 1"), ("agent", 1, "node1")]
)
def test_what_is_between_us_and_a_rank_is_killed(
    launch: Launch, victim: str, code: int, who: str
) -> None:
    launched = launch()
    [process] = launched.of(1, "ds_llama.launcher.node")
    agent = process.parent()  # all three live until then
    assert agent is not None
    assert "ds_llama.launcher.agent" in agent.cmdline()
    kill([process if victim == "launch.py" else agent])
    assert launched.end() == code
    assert launched.last_line.startswith(f"the run failed: {who}, exit code {code}")


def test_a_launcher_that_was_killed_takes_its_ranks_along(launch: Launch) -> None:
    launched = launch()
    launched.signal(signal.SIGKILL)
    assert launched.end() == 137


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_its_own_run_alone(
    launch: Launch, other: Launched, signum: signal.Signals
) -> None:
    launched = launch()
    launched.signal(signum)
    assert launched.end() == 128 + signum
    assert f"{signum.name}: the ranks save and end" in launched.err.read_text()
    assert len(other.of(1, "told")) == 3  # launch.py and two ranks


def test_a_second_signal_does_not_wait(launch: Launch) -> None:
    launched = launch()
    for rank in launched.ranks:
        launched.tell(rank, "deaf")
    launched.wait(lambda: all((launched.folder / f"deaf-{r}").exists() for r in (0, 1)), 60)
    launched.signal(signal.SIGINT)
    launched.wait(lambda: "SIGINT: the ranks save" in launched.err.read_text(), 60)
    launched.signal(signal.SIGINT)
    assert launched.end(SAVE_S - 5) == 130


def test_a_host_that_lets_nobody_in(cluster: Cluster, tmp_path: Path) -> None:
    cluster.refuse_key(2)
    try:
        launched = Launched(cluster, tmp_path / "refused", (1, 1, 1))
        assert launched.end() == 1
    finally:
        cluster.accept_key(2)
    text = launched.err.read_text()
    assert "error: node2 cannot be reached: " in text
    assert "Permission denied" in text
    assert "remedy: see whether `ssh node2 true` works" in text
    assert launched.last_line.startswith("the run failed: node2, exit code 1")


def test_ctrl_c_does_not_wait_for_a_host_that_does_not_answer(
    cluster: Cluster, tmp_path: Path
) -> None:
    """ssh itself would say so after 20 s."""
    cluster.link(2, "down")
    try:
        launched = Launched(cluster, tmp_path / "silent", (1, 1, 1))
        launched.wait(lambda: any("node2" in p.info["cmdline"] for p in cluster.processes(0)), 100)
        launched.signal(signal.SIGINT)
        assert launched.end() == 130
    finally:
        cluster.link(2, "up")
    said = launched.err.read_text()
    assert "SIGINT: nothing has begun" in said
    assert "cannot be reached" not in said


def test_a_spare_takes_the_place_of_a_host_that_crashed(
    new_cluster: Callable[[int], Cluster], tmp_path: Path
) -> None:
    hosts = new_cluster(3)
    settings = {"nodes": 2, "restarts": 1, "again": ["again"]}
    launched = Launched(hosts, tmp_path / "spare", (1, 1, 1), ["first"], **settings)
    launched.world_size = 2
    launched.wait_until_up()
    assert launched.facts(1)["host"] == "node1"
    hosts.crash(1)
    launched.wait(lambda: launched.facts(1)["host"] == "node2", 200)
    launched.wait(lambda: launched.facts(0)["argv"][-1] == "again", 100)
    launched.tell_all("finish")
    assert launched.end() == 0
    assert "error: node1 closed the connection: " in launched.err.read_text()
    assert "starting again on node0, node2 (0 left)" in launched.out.read_text()


def test_a_host_that_comes_back_is_taken_again(
    new_cluster: Callable[[int], Cluster], tmp_path: Path
) -> None:
    """There is no spare: it is waited for, and asked like any other."""
    hosts = new_cluster(2)
    settings = {"restarts": 1, "again": ["again"], "check": True, "wait_s": 300.0}
    launched = Launched(hosts, tmp_path / "back", (1, 1), ["first"], **settings)
    launched.wait_until_up()
    hosts.crash(1)
    launched.wait(lambda: "waiting for hosts, " in launched.err.read_text(), 120)
    hosts.boot(1)
    launched.wait(lambda: all(launched.facts(r)["argv"][-1] == "again" for r in (0, 1)), 200)
    launched.tell_all("finish")
    assert launched.end() == 0
    said = launched.err.read_text()
    assert "error: node1 closed the connection: " in said
    assert "2 hosts checked in " in said.rpartition("waiting for hosts, ")[2]


def test_the_other_run_has_lived(other: Launched, cluster: Cluster) -> None:
    """And its arguments had arrived, through every shell, as they were given."""
    other.signal(signal.SIGTSTP)
    other.wait(lambda: "Ctrl-Z does nothing" in other.err.read_text(), 60)
    other.tell_all("finish")
    assert other.end() == 0
    other.wait(lambda: not any(map(cluster.processes, range(cluster.count))), 60)
    assert other.out.read_text() == "rank 0 is up\n"
    for rank, host in enumerate(("node0", "node1", "node1")):
        facts = other.facts(rank)
        assert facts["host"] == host
        assert facts["argv"][1:] == NASTY
        env = facts["env"]
        assert (env["RANK"], env["WORLD_SIZE"], env["MASTER_ADDR"]) == (
            str(rank),
            "3",
            "10.77.0.10",
        )
        assert env["GLOO_SOCKET_IFNAME"] == env["NCCL_SOCKET_IFNAME"] == "eth0"


def test_a_host_that_is_silent_for_15_seconds(cut_off: Launched) -> None:
    """Its ranks have ended too, by themselves: nobody could tell them."""
    assert cut_off.end() == 1
    said = cut_off.err.read_text()  # where we are late, ssh itself is first
    assert re.search(
        "error: node1 (has been silent for 15 s|closed the connection: .*Timeout,)", said
    )
    assert cut_off.last_line.startswith("the run failed: node1, exit code 1")
