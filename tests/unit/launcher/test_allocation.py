"""`ds-llama launch hostfile --from-slurm`, by Slurm's variables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_llama.cli.main import main
from ds_llama.errors import DsLlamaError
from ds_llama.launcher import allocation, hostfile

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "n[1-3],login",
    "SLURM_TASKS_PER_NODE": "2(x3),1",
}
WORDS = ["launch", "hostfile", "--from-slurm"]


def slots(**changes: str) -> list[int]:
    return [host.slots for host in allocation.hosts({**JOB, **changes})]


def error(env: dict[str, str]) -> list[str]:
    with pytest.raises(DsLlamaError) as caught:
        allocation.hosts(env)
    return str(caught.value).splitlines()


def test_slots_are_gpus_or_else_tasks() -> None:
    assert slots() == [2, 2, 2, 1]
    assert slots(SLURM_GPUS_ON_NODE="4") == [4] * 4
    assert slots(SLURM_JOB_GPUS="0,2,5") == [3] * 4
    more = {"SLURM_JOB_GPUS": "4,5", "SLURM_GPUS_PER_NODE": "a100:2", "SLURM_GPUS": "8"}
    assert slots(SLURM_GPUS_ON_NODE="2", **more) == [2] * 4
    assert [host.slots for host in allocation.hosts(JOB, 5)] == [5] * 4


def test_the_command_writes_what_train_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    assert main(WORDS) == 0
    printed = capsys.readouterr().out
    assert printed == "n1 slots=2\nn2 slots=2\nn3 slots=2\nlogin slots=1\n"
    assert main([*WORDS, "--out", str(tmp_path / "hosts")]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "hosts").read_text() == printed
    assert hostfile.read(tmp_path / "hosts") == allocation.hosts(JOB)
    assert main([*WORDS, "--json", "--slots", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["hosts"][-1] == {"name": "login", "slots": 8}


def test_outside_of_an_allocation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in JOB:
        monkeypatch.delenv(name, raising=False)
    assert main(WORDS) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: this is no Slurm allocation: SLURM_JOB_ID is not set",
        "where: SLURM_JOB_ID",
        "remedy: call it in a batch script, or in the shell that salloc opens",
    ]
    assert main(WORDS[:2]) == 2
    assert "remedy: give --from-slurm" in capsys.readouterr().err


def test_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "absent" / "hosts"
    assert main([*WORDS, "--out", str(path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {path} cannot be written: No such file or directory",
        "where: --out",
        "remedy: give a path in a folder that is there",
    ]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        (
            {"SLURM_TASKS_PER_NODE": "2"},  # of a step on one of the nodes
            "SLURM_TASKS_PER_NODE=2, SLURM_JOB_NODELIST=n[1-3],login",
        ),
        (
            {"SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_GPUS": "0,1"},
            "SLURM_GPUS_ON_NODE=4, SLURM_JOB_GPUS=0,1",
        ),
        (
            {"SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS": "10"},  # 4 here, fewer elsewhere
            "SLURM_GPUS_ON_NODE=4, SLURM_GPUS=10, SLURM_JOB_NODELIST=n[1-3],login",
        ),
        (
            {"SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_NODE": "2"},
            "SLURM_GPUS_ON_NODE=4, SLURM_GPUS_PER_NODE=2, SLURM_JOB_NODELIST=n[1-3],login",
        ),
    ],
)
def test_variables_that_contradict_each_other(changes: dict[str, str], shown: str) -> None:
    what, where, remedy = error({**JOB, **changes})
    assert what == f"error: Slurm's variables contradict each other: {shown}"
    assert where == f"where: {shown.partition('=')[0]}"
    assert remedy == (
        "remedy: give --slots N, the ranks of a node; or call it where the allocation was made, "
        "and not in a step of it"
    )


def test_variables_that_say_nothing() -> None:
    slots = "remedy: give --slots N, the ranks of a node"
    assert error({**JOB, "SLURM_GPUS_ON_NODE": "four"}) == [
        "error: SLURM_GPUS_ON_NODE=four is not a number of GPUs",
        "where: SLURM_GPUS_ON_NODE",
        slots,
    ]
    assert error({name: JOB[name] for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST")}) == [
        "error: Slurm does not say how many ranks a node has",
        "where: SLURM_TASKS_PER_NODE",
        slots,
    ]
