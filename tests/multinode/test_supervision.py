"""Launches over hosts in namespaces: each ends within its time, with its code, and leaves nothing.

The whole table of events, under real training, is `python -m tests.campaigns.multinode`.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.multinode.cluster import Cluster
from tests.multinode.launched import Launched

pytestmark = pytest.mark.timeout(120)
NASTY = ["a b", "x;y", 'it\'s "q"', "--", "$HOME", "", "-x", "*", "`id`", "a\nb", "é", "%n", "\\"]


@pytest.fixture(scope="module")
def other(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """A launch on the same hosts that lives through all that happens to the others."""
    launched = Launched(cluster, tmp_path_factory.mktemp("other") / "other", (1, 2), NASTY)
    launched.wait_until_up()
    return launched


def test_a_killed_rank_is_named(other: Launched, cluster: Cluster, tmp_path: Path) -> None:
    launched = Launched(cluster, tmp_path / "rank", (1, 1), launcher="pdsh")
    launched.wait_until_up()
    launched.tell(1, "signal 9")
    assert launched.end() == 137
    text = launched.err.read_text()
    assert "rank 1 is up" in text
    assert "error: rank 1 on node1 was ended by signal 9 (SIGKILL)" in text
    assert launched.last_line.startswith("the run failed: node1, rank 1, exit code 137, log node1:")
    log = launched.last_line.partition("log node1:")[2].partition(";")[0]
    assert Path(log).read_text() == "rank 1 is up\n"


def test_a_launcher_that_was_killed_takes_its_ranks_along(
    other: Launched, cluster: Cluster, tmp_path: Path
) -> None:
    launched = Launched(cluster, tmp_path / "launcher", (1, 1))
    launched.wait_until_up()
    launched.signal(signal.SIGKILL)
    assert launched.end() == 137


def test_ctrl_c_ends_its_own_run_alone(other: Launched, cluster: Cluster, tmp_path: Path) -> None:
    launched = Launched(cluster, tmp_path / "signal", (1, 1))
    launched.wait_until_up()
    launched.signal(signal.SIGINT)
    assert launched.end() == 130
    assert len(other.of(0, "-m")) >= 2


def test_the_other_run_has_lived(other: Launched, cluster: Cluster) -> None:
    """And its arguments had arrived, through every shell, as they were given."""
    other.tell_all("finish")
    assert other.end() == 0
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
        assert env["GLOO_SOCKET_IFNAME"] == "eth0"
