"""argv of DeepSpeed's launcher, read back by DeepSpeed's own parsers."""

from __future__ import annotations

import base64
import json
import os
import sys
from types import SimpleNamespace

import pytest
from deepspeed.launcher import launch as ds_launch
from deepspeed.launcher import runner as ds_runner
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.errors import CallError
from ds_llama.launcher import command

CPU = {"DS_ACCELERATOR": "cpu"}
CUDA = {"DS_ACCELERATOR": "cuda"}
ARGUMENTS = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=8)


def parse_local(argv: list[str]) -> ds_runner.argparse.Namespace:
    """As DeepSpeed's launch.py reads it; `world_info` as what it stands for."""
    assert argv[:4] == [sys.executable, "-u", "-m", "ds_llama.launcher.node"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv[3:])
        read = ds_launch.parse_args()
    read.world_info = json.loads(base64.urlsafe_b64decode(read.world_info))
    return read


@given(ARGUMENTS)
def test_every_argument_passes_deepspeeds_parser(words: list[str]) -> None:
    arguments = ["train", *words]
    read = parse_local(command.local(arguments, 2, dict(CPU), "ds_llama"))
    assert (read.module, read.training_script) == (True, "ds_llama")
    assert read.training_script_args == arguments


def test_what_the_runner_would_give_launch_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that DeepSpeed's own runner says on one machine, said without it."""
    started: list[list[str]] = []

    def start(argv: list[str], **_: object) -> _Done:
        started.append(argv)
        return _Done()

    monkeypatch.setattr(ds_runner, "subprocess", SimpleNamespace(Popen=start))
    monkeypatch.setattr(ds_runner, "set_log_level_from_string", lambda level: None)
    runner = ["--hostfile", os.devnull, "--log_level", "critical", "--include", "localhost:0"]
    ds_runner.main([*runner, "--master_port", "1234", "--module", "ds_llama", "train", "run.json"])
    theirs = parse_local([*started[0][:3], "ds_llama.launcher.node", *started[0][4:]])
    ours = parse_local(command.local(["train", "run.json"], 1, dict(CPU), "ds_llama"))
    assert theirs.master_port == 1234
    assert vars(ours) == vars(theirs) | {"master_port": ours.master_port}


class _Done:
    returncode = 0

    def wait(self) -> None:
        """Over already."""


def test_the_port_is_free_and_not_deepspeeds_default() -> None:
    ports = {parse_local(command.local([], 1, dict(CPU), "m")).master_port for _ in range(3)}
    assert len(ports) > 1


@pytest.mark.parametrize(("visible", "used"), [("2,3", [2, 3]), ("5, 1,0", [5, 1])])
def test_the_users_devices_are_the_ones_used(visible: str, used: list[int]) -> None:
    env = {**CUDA, "CUDA_VISIBLE_DEVICES": visible}
    read = parse_local(command.local([], 2, env, "ds_llama"))
    assert read.world_info == {"localhost": used}
    assert "CUDA_VISIBLE_DEVICES" not in env


def test_more_ranks_than_devices() -> None:
    with pytest.raises(CallError, match=r"4 processes on 2 device\(s\)") as caught:
        command.local([], 4, {**CUDA, "CUDA_VISIBLE_DEVICES": "0,1"}, "ds_llama")
    assert caught.value.where == "--nproc"
    assert caught.value.remedy.startswith("give --nproc 2, or DS_ACCELERATOR=cpu")


@pytest.mark.parametrize(
    ("visible", "wrong"),
    [
        ("GPU-5", "CUDA_VISIBLE_DEVICES=GPU-5 is not a list of indices"),
        ("1,1", "CUDA_VISIBLE_DEVICES=1,1 has a device twice, which ranks would share"),
        ("0,4", r"CUDA_VISIBLE_DEVICES=0,4 is of more than the 4 device\(s\) that are there"),
    ],
)
def test_devices_that_cannot_be(visible: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "count_devices", lambda: 4)
    with pytest.raises(CallError, match=wrong) as caught:
        command.local([], 1, {**CUDA, "CUDA_VISIBLE_DEVICES": visible}, "ds_llama")
    assert caught.value.where == "CUDA_VISIBLE_DEVICES"
    assert caught.value.remedy.startswith("give indices as `nvidia-smi -L` numbers them")


@pytest.mark.parametrize("nproc", [0, -2])
def test_no_processes(nproc: int) -> None:
    with pytest.raises(CallError, match=f"{nproc} processes cannot train") as caught:
        command.local([], nproc, dict(CPU), "ds_llama")
    assert (caught.value.where, caught.value.remedy) == ("--nproc", "give 1 or more")
