from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ds_llama.launcher.cores import usable_cores
from ds_llama.launcher.environment import (
    count_devices,
    find_compiler,
    has_device,
    rank_environment,
)


def test_cores_are_shared_out() -> None:
    for nproc in (1, 2, 1000):
        env = rank_environment(nproc, {})
        assert int(env["OMP_NUM_THREADS"]) == max(1, usable_cores() // nproc)


def test_what_the_user_has_set_stays() -> None:
    given = {"OMP_NUM_THREADS": "7", "DS_ACCELERATOR": "cuda", "CXX": "mine"}
    env = rank_environment(2, given)
    assert {name: env[name] for name in given} == given
    assert given == {"OMP_NUM_THREADS": "7", "DS_ACCELERATOR": "cuda", "CXX": "mine"}


def test_this_pythons_tools_come_first() -> None:
    own = os.path.dirname(sys.executable)
    env = rank_environment(1, {"PATH": os.pathsep.join(["/usr/bin", own, "/bin"])})
    assert env["PATH"].split(os.pathsep) == [own, "/usr/bin", "/bin"]


def test_warnings_that_a_user_cannot_mend_are_off_and_the_users_own_kept() -> None:
    env = rank_environment(1, {"PYTHONWARNINGS": "error"})
    assert env["PYTHONWARNINGS"].split(",")[0] == "error"
    assert "FutureWarning" in env["PYTHONWARNINGS"]


@pytest.mark.parametrize(
    ("files", "env", "found"),
    [
        ([], {}, False),
        (["nvidia0"], {}, True),
        (["nvidiactl"], {}, False),
        (["kfd"], {}, True),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, False),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        (["nvidia0"], {"DS_ACCELERATOR": "cpu"}, False),
        ([], {"DS_ACCELERATOR": "cuda"}, True),
    ],
)
def test_a_device_is_found_without_torch(
    files: list[str], env: dict[str, str], found: bool, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert has_device(env, tmp_path) is found


def test_devices_are_counted(tmp_path: Path) -> None:
    assert count_devices(tmp_path) is None
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert count_devices(tmp_path) == 2


def test_another_compiler_is_named(tmp_path: Path) -> None:
    assert find_compiler({"PATH": str(tmp_path)}) is None
    (tmp_path / "clang++").touch(0o755)
    assert rank_environment(1, {"PATH": str(tmp_path)})["CXX"] == "clang++"
    (tmp_path / "c++").touch(0o755)
    assert find_compiler({"PATH": str(tmp_path)}) == "c++"
    assert find_compiler({"PATH": str(tmp_path), "CXX": "nothing -O3"}) is None
