"""Training under a real Slurm of three nodes, without ssh between them."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.multinode import slurm_cluster
from tests.multinode.slurm_cluster import SlurmCluster, wait
from tests.multinode.slurm_runs import ENVIRONMENT, Runs

# Becomes a rank, as `python -m ds_llama` does before anything else, and says what it is now.
PROBE = """
import json, os, sys
from ds_llama.launcher.slurm import become_rank
become_rank()
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT",
         "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS")
words = [os.environ.get(name) for name in names]
sys.stdout.write(json.dumps([os.uname().nodename, *words]) + "\\n")
sys.stdout.flush()
assert "torch" not in sys.modules
"""
TROUBLE = """
import sys, time
if RANK == "1":
    sys.exit(3)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if (why := slurm_cluster.missing()) is not None:
        pytest.skip(why)
    with SlurmCluster(3, tmp_path_factory.mktemp("slurm") / "c") as cluster:
        yield cluster


def srun(cluster: SlurmCluster, *words: str, **env: str) -> Any:
    return cluster.run("srun", *words, env=ENVIRONMENT | env)


def ranks(printed: str) -> list[list[str | None]]:
    """What each PROBE has said, in the order of the ranks."""
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("[")]
    return sorted(found, key=lambda words: str(words[1]))


@pytest.mark.timeout(500)
def test_the_tasks_of_a_step_are_ranks(cluster: SlurmCluster) -> None:
    """Three tasks on two nodes."""
    done = srun(cluster, "-N2", "-w", "n[0-1]", "-n3", sys.executable, "-c", PROBE)
    assert done.returncode == 0, done.stderr
    found = ranks(done.stdout)
    assert [words[:5] for words in found] == [
        ["n0", "0", "3", "0", "2"],
        ["n0", "1", "3", "1", "2"],
        ["n1", "2", "3", "0", "1"],
    ]
    assert len({words[6] for words in found}) == 1
    assert 12000 <= int(str(found[0][6])) < 32000
    assert {(words[5], words[7]) for words in found} == {("n0", "eth0")}
    assert [words[8] for words in found] == ["1", "1", "1"]


@pytest.mark.timeout(500)
def test_a_task_with_one_gpu_of_its_own_and_a_node_alone(cluster: SlurmCluster) -> None:
    words = ("-N1", "-n2", "--gpus-per-task=1", "--cpus-per-task=1", "-w", "n2")
    done = srun(cluster, *words, sys.executable, "-c", PROBE)
    assert done.returncode == 0, done.stderr
    found = ranks(done.stdout)
    assert [words[:6] for words in found] == [
        ["n2", "0", "2", "0", "2", "n2"],
        ["n2", "1", "2", "0", "2", "n2"],  # of the one device that it sees
    ]
    assert {(words[7], words[8]) for words in found} == {("lo", "1")}


@pytest.mark.timeout(500)
def test_what_only_looks_like_a_task(cluster: SlurmCluster, tmp_path: Path) -> None:
    """A shell of `srun --pty`; a batch script with that shell's variables, unlike its srun."""
    probe = f"{shlex.quote(sys.executable)} {tmp_path}/probe.py"
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "job").write_text(
        "#!/bin/bash\n"
        "test -n $SLURM_PTY_PORT -a $SLURM_STEP_NUM_TASKS = 2 || exit 9\n"
        f"{probe} > batch\nsrun {probe} > step\nRANK=7 srun {probe} > given\ntouch done\n"
    )
    (tmp_path / "typed").write_text(
        "test $SLURM_PROCID = 0 || exit 0\n"  # as a shell without a terminal ends
        f"{probe} > shell\nsbatch -N1 -n2 -w n1 --chdir={tmp_path} job > submitted\n"
    )
    shell = f"srun -N1 -n2 -w n0 --pty --chdir={tmp_path} bash typed"
    terminal = ("script", "--quiet", "--command", shell, "/dev/null")
    done = cluster.run(*terminal, env=ENVIRONMENT)
    wait(lambda: (tmp_path / "done").exists(), 200, what=f"the batch script ({done.stderr})")
    for name in ("shell", "batch"):
        [found] = ranks((tmp_path / name).read_text())
        assert found[1:] == [None] * 8
    assert [words[1:3] for words in ranks((tmp_path / "step").read_text())] == [
        ["0", "2"],
        ["1", "2"],
    ]
    given = ranks((tmp_path / "given").read_text())  # whoever has given a rank is right
    assert [words[1:3] for words in given] == [["7", None]] * 2


@pytest.mark.timeout(500)
def test_a_mistake_is_said_once(cluster: SlurmCluster) -> None:
    """slurmd itself listens at 6818."""
    command = (sys.executable, "-m", "ds_llama", "train", "absent.json")
    done = srun(cluster, "-N2", "-w", "n[0-1]", "--ntasks-per-node=2", *command)
    assert done.returncode == 2
    assert done.stderr.count("where: absent.json") == 1  # both have one /tmp
    command = (sys.executable, "-m", "ds_llama", "--version")
    done = srun(cluster, "-N2", "-w", "n[0-1]", "--ntasks-per-node=2", *command, MASTER_PORT="6818")
    assert "error: the ranks cannot meet at port 6818 of n0: Address already" in done.stderr
    assert "where: MASTER_PORT=6818" in done.stderr


@pytest.mark.timeout(900)
def test_a_rank_that_fails_or_loses_its_step_ends_the_others(cluster: SlurmCluster) -> None:
    program = PROBE + TROUBLE.replace("RANK", 'os.environ["RANK"]')
    words = ("-N2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", sys.executable, "-c")
    done = srun(cluster, *words, program)
    assert done.returncode in (143, 137)  # the largest: that of the rank that was ended
    assert re.search(r"srun: error: n[12]: task 1: Exited with exit code 3\n", done.stderr)
    program = PROBE + "\nimport time\ntime.sleep(1000)"
    step = cluster.start("srun", *words, program, env=ENVIRONMENT)
    wait(lambda: len(cluster.processes(program)) == 2, 200, what="two ranks")
    parents = filter(None, [process.parent() for process in cluster.processes(program)])
    next(parent for parent in parents if parent.name().startswith("slurmstepd")).kill()
    wait(lambda: len(cluster.processes(program)) == 1, 100, what="the end of its rank")
    step.kill()
    step.wait()
    cluster.cancel_all()


@pytest.mark.timeout(500)
def test_an_allocation_is_checked_and_written_as_a_hostfile(cluster: SlurmCluster) -> None:
    launch = ("salloc", "-N2", "-w", "n[1-2]", "--ntasks-per-node=2", sys.executable, "-m")
    launch = (*launch, "ds_llama", "launch")
    done = cluster.run(*launch, "check", "--slurm", "--no-allreduce", "--json", env=ENVIRONMENT)
    report = json.loads(done.stdout)
    assert [(host["name"], host["ok"]) for host in report["hosts"]] == [("n1", True), ("n2", True)]
    assert all(host["facts"]["slots"] == 2 for host in report["hosts"])
    assert [list(host["facts"]["reached"]) for host in report["hosts"]] == [["n2"], ["n1"]]
    assert done.returncode == 0, report["problems"]
    done = cluster.run(*launch, "hostfile", "--from-slurm", env=ENVIRONMENT)
    assert done.stdout == "n1 slots=2\nn2 slots=2\n"
    done = cluster.run(*launch[5:], "hostfile", "--from-slurm", env=ENVIRONMENT)
    assert done.returncode == 2
    assert "error: this is no Slurm allocation: SLURM_JOB_ID is not set" in done.stderr


@pytest.mark.timeout(3000)
def test_saved_by_a_signal_requeued_and_gone_on_with(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Two nodes learn what one host with as many ranks learns, also over the requeue."""
    runs = Runs(cluster, tmp_path)
    runs.prepare()
    job = runs.submit(runs.write("two"))
    runs.wait_for_steps("two", 3)
    cluster.ask("scancel", "--signal=USR1", job)
    alone = runs.start_here(runs.write("one"), 2)  # while the job waits to be begun again
    try:
        cluster.wait_for(job, "PENDING", timeout_s=500)
        assert cluster.state(job)["Restarts"] == "1"
        saved = runs.newest("two")
        assert saved == len(runs.curve("two"))
        assert f"saved before the time limit; job {job} is requeued" in runs.printed(job)
        runs.wait_for_steps("two", saved + 3)
        assert f"going on from step-{saved:08d}" in runs.printed(job)
        cluster.ask("scancel", job)
        cluster.wait_for(job, "CANCELLED")
        runs.wait_for_steps("one", saved + 3)
        alone.send_signal(signal.SIGTERM)
        assert alone.wait(500) == 128 + signal.SIGTERM
    finally:
        if alone.poll() is None:
            for process in [*psutil.Process(alone.pid).children(recursive=True), alone]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    ours, theirs = runs.curve("two")[: saved + 3], runs.curve("one")[: saved + 3]
    assert ours == theirs
    assert len({tuple(row[1:3]) for row in ours}) == saved + 3  # no two steps are alike
    wait(lambda: not cluster.processes("two.json"), 200, what="the end of every rank")
