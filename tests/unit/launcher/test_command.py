"""argv of DeepSpeed's launcher, read back by DeepSpeed's own parsers."""

from __future__ import annotations

import sys
from pathlib import Path

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


def parse(argv: list[str]) -> ds_runner.argparse.Namespace:
    assert argv[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    return ds_runner.parse_args(argv[3:])


@given(ARGUMENTS)
def test_every_argument_passes_both_of_deepspeeds_parsers(words: list[str]) -> None:
    arguments = ["train", *words]
    read = parse(command.local(arguments, 2, dict(CPU), "ds_llama"))
    assert (read.module, read.user_script, read.num_gpus) == (True, "ds_llama", 2)
    assert read.user_args == arguments
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["launch.py", "--module", "ds_llama", *read.user_args])
        assert ds_launch.parse_args().training_script_args == arguments


def test_a_local_run_ignores_the_clusters_hostfile() -> None:
    """DeepSpeed reads /job/hostfile when it is told nothing."""
    read = parse(command.local([], 1, dict(CPU), "ds_llama"))
    assert ds_runner.fetch_hostfile(read.hostfile) is None
    assert read.hostfile != ds_runner.DLTS_HOSTFILE


def test_the_port_is_free_and_not_deepspeeds_default() -> None:
    ports = {parse(command.local([], 1, dict(CPU), "m")).master_port for _ in range(3)}
    assert len(ports) > 1


@pytest.mark.parametrize(
    ("visible", "include"), [("2,3", "localhost:2,3"), ("5, 1,0", "localhost:5,1")]
)
def test_the_users_devices_are_the_ones_used(visible: str, include: str) -> None:
    env = {**CUDA, "CUDA_VISIBLE_DEVICES": visible}
    read = parse(command.local([], 2, env, "ds_llama"))
    assert (read.include, read.num_gpus) == (include, -1)
    assert "CUDA_VISIBLE_DEVICES" not in env


def test_more_ranks_than_devices() -> None:
    with pytest.raises(CallError, match=r"4 processes on 2 device\(s\)") as caught:
        command.local([], 4, {**CUDA, "CUDA_VISIBLE_DEVICES": "0,1"}, "ds_llama")
    assert caught.value.where == "--nproc"
    assert caught.value.remedy.startswith("give --nproc 2, or DS_ACCELERATOR=cpu")


def test_devices_by_name() -> None:
    with pytest.raises(CallError, match="CUDA_VISIBLE_DEVICES=GPU-5 is not a list of indices"):
        command.local([], 1, {**CUDA, "CUDA_VISIBLE_DEVICES": "GPU-5"}, "ds_llama")


@pytest.mark.parametrize("nproc", [0, -2])
def test_no_processes(nproc: int) -> None:
    with pytest.raises(CallError, match=f"{nproc} processes cannot train") as caught:
        command.local([], nproc, dict(CPU), "ds_llama")
    assert (caught.value.where, caught.value.remedy) == ("--nproc", "give 1 or more")


def test_several_hosts(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a slots=2\nme@b slots=3\n")
    argv, world_size = command.multinode(["train", "run.json", "train.steps=5"], path, "ds_llama")
    read = parse(argv)
    assert (read.hostfile, read.user_script, world_size) == (str(path), "ds_llama", 5)
    assert read.user_args == ["train", "run.json", "train.steps=5"]
    assert ds_runner.fetch_hostfile(read.hostfile) == {"a": 2, "me@b": 3}


@pytest.mark.parametrize("word", ["a b", "x;reboot", "$HOME", "'q'", "", "a\nb", "é", "*"])
def test_what_a_shell_would_change_is_refused(word: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a slots=1\n")
    with pytest.raises(CallError, match="would not arrive unchanged") as caught:
        command.multinode(["train", word], path, "ds_llama")
    assert caught.value.remedy.startswith("write the value into the run's JSON")
