"""Op builds: which are needed, locks of the living and of the dead, failures that say why.

The builds are real processes; what compiles is not C++ where a test needs no more than that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ds_llama.errors import MachineError
from ds_llama.launcher import baton, ops


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for builds."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return tmp_path


def zero(**keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 3, **keys}}


@pytest.mark.parametrize(
    ("deepspeed", "names"),
    [
        ({}, []),
        (zero(), []),
        (zero(offload_optimizer={"device": "none"}), []),
        (zero(offload_optimizer={"device": "cpu"}), ["cpu_adam"]),
        (zero(offload_param={"device": "cpu"}), []),
        (zero(offload_optimizer={"device": "nvme"}), ["cpu_adam", "async_io"]),
        (zero(offload_param={"device": "nvme"}), ["async_io"]),
        ({"optimizer": {"type": "AdamW"}}, ["fused_adam"]),
        ({"optimizer": {"type": "Adam", "params": {"torch_adam": True}}}, []),
        ({"optimizer": {"type": "SGD"}}, []),
        (
            {**zero(offload_optimizer={"device": "cpu"}), "optimizer": {"type": "Lion"}},
            ["cpu_lion"],
        ),
        ({"zero_optimization": "nonsense"}, []),
    ],
)
def test_needed(deepspeed: dict[str, Any], names: list[str]) -> None:
    assert ops.needed(deepspeed) == names


def test_a_run_s_own_optimizer_of_torch_needs_none() -> None:
    offload = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}
    assert ops.needed(offload, "AdamW") == ["cpu_adam", "async_io"]
    assert ops.needed(offload, "SGD") == ["async_io"]


def test_the_ops_of_a_runs_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"model": {"preset": "debug"}, "data": {"train": "shard"}, "deepspeed": "zero2"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    words = [str(tmp_path / "run.json"), "--resume", "required"]
    assert ops._asked(words) == []
    offload = "deepspeed.zero_optimization.offload_optimizer.device=cpu"
    assert ops._asked([*words, offload]) == ["cpu_adam"]
    assert ops._asked(["async_io"]) == ["async_io"]
    assert ops._main([str(tmp_path / "absent.json")]) == 2
    assert f"where: {tmp_path}/absent.json" in capsys.readouterr().err


def test_every_op_has_a_builder() -> None:
    from deepspeed.ops import op_builder

    missing = {op.builder for op in ops.OPS.values() if not hasattr(op_builder, op.builder)}
    assert missing <= {"ShareMemCommBuilder"}  # the CPU accelerator's alone


def test_nothing_to_build_touches_nothing(root: Path) -> None:
    ops.build([])
    assert list(root.iterdir()) == []


def test_no_compiler(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MachineError) as caught:
        ops.build(["cpu_adam"])
    assert caught.value.what == "no C++ compiler: c++, g++ or clang++ is not on PATH"
    assert caught.value.where == "PATH"
    assert "apt install g++ python3-dev" in caught.value.remedy


NO_LIBAIO = """#!/bin/sh
case "$*" in *-laio*) echo 'cannot find -laio'; exit 1;; esac
exec c++ "$@"
"""


def test_no_libaio_is_said_before_anything_is_compiled(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = root / "c++-without-libaio"
    compiler.write_text(NO_LIBAIO)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(MachineError) as caught:
        ops.build(ops.needed(zero(offload_optimizer={"device": "nvme"})))
    assert caught.value.what.startswith("offload to NVMe needs libaio and its headers")
    assert caught.value.where == "libaio.h"
    assert "apt install libaio-dev" in caught.value.remedy
    assert "dnf install libaio-devel" in caught.value.remedy
    assert capsys.readouterr().err == ""


def test_this_machine_has_libaio() -> None:
    """.ci/run installs it: without it the cells of offload to NVMe could not run."""
    ops._require_libaio()


BROKEN = """#!/bin/sh
case "$*" in *.cpp*) echo 'x.cpp:1: fatal error: Python.h: none'; exit 1;; esac
exec c++ "$@"
"""


def test_a_build_that_fails(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = root / "broken-c++"
    compiler.write_text(BROKEN)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(MachineError) as caught:
        ops.build(["pin_memory"])
    assert caught.value.what.startswith("DeepSpeed's pin_memory did not compile: ")
    assert "fatal error: Python.h" in caught.value.what
    assert caught.value.where == str(root / "ds_llama-pin_memory.log")
    assert caught.value.remedy.startswith("install a C++ compiler and Python's headers")
    announced = capsys.readouterr().err
    assert "compiling DeepSpeed's pin_memory for this machine (once; half a minute" in announced
    assert "gave up after" in announced


def test_a_build_that_takes_too_long_leaves_no_process(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = root / "slow-c++"
    compiler.write_text(f"#!/bin/sh\necho $$ > {root}/pid\nexec sleep 300\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(MachineError, match="pin_memory was not compiled within 8 s"):
        ops.build(["pin_memory"], timeout_s=8)
    if (root / "pid").exists():  # the import of torch alone may take that long
        pid = int((root / "pid").read_text())
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_build_is_made_once_and_survives_a_dead_builders_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the objects of the op that launch/test.sh has built, so that ninja has little to do."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    ops.build(["cpu_adam"])
    built = Path(json.loads(ops._stamp("cpu_adam").read_text())["library"]).parent
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    shutil.copytree(built, tmp_path / "cpu_adam")
    (tmp_path / "cpu_adam" / "lock").touch()  # torch would wait for this for ever
    assert not ops.is_built("cpu_adam")
    capsys.readouterr()
    ops.build(["cpu_adam"])
    assert ops.is_built("cpu_adam")
    assert "done after" in capsys.readouterr().err
    ops.build(["cpu_adam"])
    assert capsys.readouterr().err == ""
    rules = tmp_path / "cpu_adam" / "build.ninja"
    ours = rules.read_text()
    rules.write_text(ours.replace("-I", "-I/another/environment/include -I", 1))
    assert not ops.is_built("cpu_adam")  # another environment has built over it since
    rules.write_text(ours)
    assert ops.is_built("cpu_adam")
    (tmp_path / "cpu_adam" / "cpu_adam.so").unlink()
    assert not ops.is_built("cpu_adam")


HOLDER = (
    "import sys, time; file = open(sys.argv[1], 'a'); print('held', flush=True); time.sleep(60)"
)
FLOCK = HOLDER.replace("print", "import fcntl; fcntl.flock(file, fcntl.LOCK_EX); print")


def hold(path: Path, code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_torchs_lock_of_a_living_build_is_waited_for(root: Path) -> None:
    lock = root / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    holder = hold(lock, HOLDER)
    try:
        with pytest.raises(MachineError) as caught:
            baton.clear_stale(root, "cpu_adam", timeout_s=0.2)
        assert caught.value.what.startswith(f"process {holder.pid} has been compiling DeepSpeed's")
        assert caught.value.where == str(lock)
        assert lock.exists()
    finally:
        end(holder)
    baton.clear_stale(root, "cpu_adam", timeout_s=0.2)
    assert not lock.exists()


def test_a_lock_on_a_shared_disk_is_believed_while_it_is_young(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = root / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    monkeypatch.setattr(baton, "_is_shared", lambda path: True)
    with pytest.raises(MachineError, match="process of another host has been compiling"):
        baton.clear_stale(root, "cpu_adam", timeout_s=0.2)
    os.utime(lock, (time.time() - 7200,) * 2)
    baton.clear_stale(root, "cpu_adam", timeout_s=0.2)
    assert not lock.exists()


def test_our_lock_is_waited_for_and_let_go_of_by_death(root: Path) -> None:
    path = root / "ds_llama.lock"
    holder = hold(path, FLOCK)
    try:
        with pytest.raises(MachineError, match="has been compiling"), baton.held(path, 0.2):
            pass
    finally:
        end(holder)
    with baton.held(path, 0.2):
        assert path.read_text() == str(os.getpid())
