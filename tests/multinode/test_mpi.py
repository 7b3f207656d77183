"""Open MPI and MPICH on three hosts: what arrives, what comes back, and who is left."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.job import Job
from tests.multinode.cluster import Cluster

HOSTS = (Host("node0", 1), Host("node1", 2, (1, 3)), Host("node2", 1))
WORDS = ("a b", "$(touch {0}/executed)", "`id`", ";", "'", '"', "", "\n", "é", "%n %h", "\\", "-x")
ENV = {"ODD": "x y;z $(touch {0}/executed) 'q' \"r\"", "LINES": "a\nb", "NONE": "", "PERCENT": "%h"}
LAUNCH = """
import json, sys
from ds_llama.launcher import passthrough
from ds_llama.launcher.job import Job
sys.exit(passthrough.launch(Job.from_json(json.load(open(sys.argv[1]))), sys.argv[2]).code)
"""

pytestmark = pytest.mark.timeout(400)


def start(cluster: Cluster, launcher: str, folder: Path, deed: str) -> subprocess.Popen[str]:
    """The launch on node0 of ranks that do the deed."""
    program = {"openmpi": "mpirun.openmpi", "mpich": "mpirun.mpich"}[launcher]
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} ({launcher})")
    words = [word.replace("{0}", str(folder)) for word in (str(folder), deed, *WORDS)]
    env = {name: value.replace("{0}", str(folder)) for name, value in ENV.items()}
    root = str(Path(__file__).parents[2])
    env["PYTHONPATH"] = root
    job = Job(
        HOSTS, "tests.multinode.rank", tuple(words), f"{folder}/logs", env=env, cwd=str(folder)
    )
    (folder / "job.json").write_text(json.dumps(job.to_json()))
    argv = [sys.executable, "-c", LAUNCH, str(folder / "job.json"), launcher]
    return cluster.start(
        0, *argv, env={"PYTHONPATH": root}, cwd=folder, stdout=-1, stderr=subprocess.STDOUT
    )


def wait_for_ranks(process: subprocess.Popen[str], folder: Path) -> None:
    """Until all four are up."""
    while len(list(folder.glob("rank-*.json"))) < 4:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def left(cluster: Cluster) -> list[list[str]]:
    """Names of the processes on each host, when nobody has ended any more for a moment."""
    deadline = time.monotonic() + 60
    while True:
        found = [[one.info["name"] for one in cluster.processes(host)] for host in range(3)]
        if not any(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@pytest.mark.parametrize("launcher", ["openmpi", "mpich"])
def test_a_rank_that_is_killed(cluster: Cluster, tmp_path: Path, launcher: str) -> None:
    """Until then: every rank in its place, with the arguments and variables as they were given."""
    process = start(cluster, launcher, tmp_path, "fail=2:-9")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 137, out
    [log] = (tmp_path / "logs").glob("*_rank2.log")
    said = "error: rank 2 on node1 was ended by signal 9 (SIGKILL)\nwhere: node1:"
    assert f"{said}{log}\n" in out
    assert left(cluster) == [[], [], []]
    ranks = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank-*.json"))]
    assert {"2"} <= {rank["env"]["RANK"] for rank in ranks}  # the others may have had no time
    expected = [word.replace("{0}", str(tmp_path)) for word in WORDS]
    places = {"0": ("node0", "0", "0"), "1": ("node1", "0", "1,3")}
    places |= {"2": ("node1", "1", "1,3"), "3": ("node2", "0", "0")}
    for rank in ranks:
        env = rank["env"]
        assert rank["argv"][2:] == expected
        assert rank["cwd"] == str(tmp_path)
        seen = (rank["host"], env["LOCAL_RANK"], env["CUDA_VISIBLE_DEVICES"])
        assert seen == places[env["RANK"]]
        for name, value in ENV.items():
            assert env[name] == value.replace("{0}", str(tmp_path))
        assert (env["WORLD_SIZE"], env["MASTER_ADDR"]) == ("4", "node0")
    assert not (tmp_path / "executed").exists()


def test_a_signal_has_the_ranks_save(cluster: Cluster, tmp_path: Path) -> None:
    process = start(cluster, "mpich", tmp_path, "wait")
    wait_for_ranks(process, tmp_path)
    cluster.signal(process, signal.SIGTERM)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM, out
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == [
        f"saved-{rank}" for rank in range(4)
    ]
    assert left(cluster) == [[], [], []]


def test_the_ranks_end_with_their_launcher(cluster: Cluster, tmp_path: Path) -> None:
    process = start(cluster, "mpich", tmp_path, "wait")
    wait_for_ranks(process, tmp_path)
    cluster.signal(process, signal.SIGKILL)
    process.communicate(timeout=200)
    assert left(cluster) == [[], [], []]
