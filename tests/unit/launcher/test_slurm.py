"""Ranks from SLURM_*, without a Slurm; tests/multinode/test_slurm.py has a real one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.errors import DsLlamaError
from ds_llama.launcher import routes, slurm
from ds_llama.launcher.run import launch

STEP = {
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "3",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "localhost,n[08-09]",
    "SLURM_STEP_TASKS_PER_NODE": "3,1(x2)",
}
FIRST = {**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.fixture(autouse=True)
def _outside_of_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """These processes are no ranks: they outlive their parent, and leave nothing behind."""
    monkeypatch.setattr(slurm, "die_with_parent", lambda: None)
    monkeypatch.setattr(slurm.tempfile, "gettempdir", lambda: str(tmp_path))


def become(**changes: str) -> dict[str, str]:
    env = {"PATH": os.environ["PATH"], **FIRST, **changes}
    slurm.become_rank(env)
    return env


def error(**changes: str) -> list[str]:
    with pytest.raises(DsLlamaError) as caught:
        become(**changes)
    return str(caught.value).splitlines()


def test_a_task_is_a_rank() -> None:
    env = become(SLURM_CPUS_PER_TASK="7")
    assert {
        name: env[name] for name in env if re.search("RANK|WORLD|MASTER|LOCAL_S|OMP", name)
    } == {
        "RANK": "0",
        "WORLD_SIZE": "5",
        "LOCAL_RANK": "0",
        "LOCAL_SIZE": "3",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(12000 + 41 * 8 + 3),
        "OMP_NUM_THREADS": "7",
    }


def test_what_the_user_has_set_stays() -> None:
    given = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0" + str(routes.free_port()),
        "GLOO_SOCKET_IFNAME": "mine0",
        "OMP_NUM_THREADS": "2",
        "WORLD_SIZE": "5",
    }
    env = become(**given)
    assert {name: env[name] for name in given} == given


def test_another_launchers_ranks_are_right() -> None:
    """torchrun or deepspeed under `srun --ntasks-per-node=1`, or in an allocation."""
    given = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}
    env = become(**given)
    assert env == {"PATH": os.environ["PATH"], **FIRST, **given}


@pytest.mark.parametrize(
    "step",
    [
        {},
        {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script
        {**FIRST, "SLURM_STEP_NUM_TASKS": "1"},  # srun --ntasks=1, and all below it
    ],
)
def test_where_there_is_no_step_of_several_tasks(step: dict[str, str]) -> None:
    env = dict(step)
    slurm.become_rank(env)
    assert env == step
    slurm.refuse_in_step(env)


def test_one_device_for_each_task_is_the_first_that_it_sees() -> None:
    second = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    assert become(**second, CUDA_VISIBLE_DEVICES="0,1,2")["LOCAL_RANK"] == "1"
    assert become(**second, CUDA_VISIBLE_DEVICES="2")["LOCAL_RANK"] == "0"
    assert become(**second)["LOCAL_RANK"] == "1"


def test_threads_are_the_tasks_share_of_the_node() -> None:
    assert become(SLURM_CPUS_ON_NODE="13")["OMP_NUM_THREADS"] == "4"
    assert become(SLURM_CPUS_ON_NODE="2")["OMP_NUM_THREADS"] == "1"
    assert become(SLURM_CPUS_ON_NODE="64", SLURM_CPUS_PER_TASK="8")["OMP_NUM_THREADS"] == "8"


def test_the_ranks_of_a_node_share_a_folder(tmp_path: Path) -> None:
    first, second = become(), become(SLURM_PROCID="1", SLURM_LOCALID="1")
    assert Path(first["DS_LLAMA_LAUNCH"]).is_dir()
    assert first["DS_LLAMA_LAUNCH"] == second["DS_LLAMA_LAUNCH"]
    assert become(SLURM_RESTART_COUNT="1")["DS_LLAMA_LAUNCH"] != first["DS_LLAMA_LAUNCH"]
    folder = Path(first["DS_LLAMA_LAUNCH"])
    folder.rmdir()
    folder.write_text("somebody else's")
    assert "DS_LLAMA_LAUNCH" not in become()


@given(job=st.integers(1, 2**26), step=st.integers(0, 2**20))
def test_a_port_is_below_those_that_linux_gives_away(job: int, step: int) -> None:
    def port(job: int, step: int) -> int:
        return slurm.Task(job, step, 0, 2, 0, 2, 0, ["n"]).port

    assert 12000 <= port(job, step) < 32000
    others = {port(job + i, step + j) for i in range(100) for j in range(8)}
    assert len(others) == 800


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert error(MASTER_PORT=str(port)) == [
            f"error: the ranks cannot meet at port {port} of localhost: Address already in use",
            f"where: MASTER_PORT={port}",
            "remedy: run srun again, whose next step has another port, or export MASTER_PORT",
        ]
        become(MASTER_PORT=str(port), SLURM_PROCID="1", SLURM_LOCALID="1")  # rank 0 says it


@pytest.mark.parametrize("port", ["0", "70000", "any", "-1"])
def test_what_is_no_port(port: str) -> None:
    assert error(MASTER_PORT=port) == [
        f"error: MASTER_PORT={port} is not a port",
        "where: MASTER_PORT",
        "remedy: give a free port, or leave it away: 12331 is this step's",
    ]


def test_a_name_that_nobody_knows() -> None:
    lines = error(MASTER_ADDR="nowhere.invalid")
    assert lines[0].startswith("error: localhost does not know nowhere.invalid, where the ranks")
    assert lines[1] == "where: MASTER_ADDR=nowhere.invalid"
    assert lines[2] == "remedy: export MASTER_ADDR with the address of localhost before srun"


def test_another_world_than_sruns() -> None:
    assert error(WORLD_SIZE="8") == [
        "error: WORLD_SIZE is 8, and this srun has 5 tasks",
        "where: WORLD_SIZE",
        "remedy: do not set it: srun's tasks are the ranks",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_STEP_NUM_TASKS": "6"},
        {"SLURM_STEP_TASKS_PER_NODE": "3,2"},
        {"SLURM_NODEID": "3"},
        {"SLURM_LOCALID": "3"},
        {"SLURM_PROCID": "5"},
    ],
)
def test_variables_that_do_not_agree(change: dict[str, str]) -> None:
    what, where, remedy = error(**change)
    assert what.startswith("error: Slurm's variables do not describe a step: SLURM_STEP_NODELIST=")
    [(name, value)] = change.items()
    assert f"{name}={value}" in what
    assert where == "where: SLURM_STEP_NODELIST"
    assert remedy == "remedy: do not set SLURM_* by hand; start a step by srun"


def test_a_variable_that_is_no_number_or_not_there() -> None:
    assert error(SLURM_LOCALID="one")[0].endswith("do not describe a step: SLURM_LOCALID=one")
    env = {name: value for name, value in FIRST.items() if name != "SLURM_STEP_NODELIST"}
    with pytest.raises(DsLlamaError) as caught:
        slurm.become_rank(env)
    assert str(caught.value).splitlines() == [
        "error: SLURM_STEP_NODELIST is not set, and SLURM_JOB_ID is",
        "where: SLURM_STEP_NODELIST",
        "remedy: start this by srun, sbatch or salloc, and pass on all of SLURM_*",
    ]


def test_no_launcher_in_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FIRST.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DsLlamaError) as caught:
        launch(["train", "run.json"], nproc=2)
    assert str(caught.value).splitlines() == [
        "error: each of this srun's 5 tasks would start ranks of its own",
        "where: --nproc",
        "remedy: leave --nproc away, since srun's tasks are the ranks; or srun --ntasks=1",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "1: names no run; usage: sbatch launch/slurm.sbatch RUN.json"),
        (["run.json"], "SLURM_JOB_ID: is not set: submit this by sbatch"),
    ],
)
def test_the_script_says_what_it_wants(words: list[str], said: str, repository: Path) -> None:
    done = subprocess.run(
        ["bash", repository / "launch" / "slurm.sbatch", *words],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode != 0
    assert done.stderr.strip().endswith(said)
