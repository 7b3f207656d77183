"""One rank as torchrun starts it: its log, its marks, what it is told, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ds_llama.launcher import marks, starter
from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.job import Job

TORCHRUN = {
    "RANK": "2",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "3",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
}


def start(folder: Path, program: str, *words: str) -> subprocess.Popen[bytes]:
    """Module `it` with this text as rank 2; its marks and logs are in the folder."""
    (folder / "it.py").write_text(program)
    env = {**os.environ, **TORCHRUN, marks.FOLDER: str(folder)}
    env["PYTHONPATH"] = f"{folder}:{Path(__file__).parents[3]}"
    argv = [sys.executable, "-m", "ds_llama.launcher.torch_rank", str(folder / "logs")]
    return subprocess.Popen([*argv, "it", *words], env=env)


@pytest.mark.parametrize(
    ("program", "code", "mark"),
    [
        ("import os, sys; print(sys.argv[1:], os.environ['LOCAL_SIZE'])", 0, 0),
        ("print('no'); raise SystemExit(7)", 7, 7),
        ("import os; print('no', flush=True); os.kill(os.getpid(), 9)", 137, -9),
    ],
)
def test_how_it_ends(tmp_path: Path, program: str, code: int, mark: int) -> None:
    process = start(tmp_path, program, "a b", "--help")
    assert process.wait(30) == code
    assert marks.ended(tmp_path) == {2: mark}
    [log] = (tmp_path / "logs").glob("*_rank2.log")
    assert log.read_text() == ("no\n" if code else "['a b', '--help'] 2\n")


def test_a_signal_reaches_it_once(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    print('asked', flush=True); time.sleep(0.5); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('up', flush=True)\n"
        "time.sleep(20)\n"
    )
    process = start(tmp_path, program)
    while not any(log.read_text() for log in tmp_path.glob("logs/*.log")):
        time.sleep(0.02)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    [log] = (tmp_path / "logs").glob("*_rank2.log")
    assert log.read_text() == "up\nasked\n"
    assert set(marks.started(tmp_path)) == {2}


def test_torch_takes_the_command() -> None:
    """By torch's own parser: a host's number, ranks and devices, and our arguments untouched."""
    from torch.distributed.run import parse_args

    hosts = (Host("a", 1), Host("b", 2, (1, 3)))
    job = Job(hosts, "it", ("--nnodes", "", "-m"), "/logs", starter="torchrun")
    python, *words = starter.argv(job.with_master("10.0.0.1", 29501), 1)
    read = parse_args(words[words.index("torch.distributed.run") + 1 :])
    assert (read.nnodes, read.node_rank, read.nproc_per_node) == ("2", 1, "2")
    assert (read.master_addr, read.master_port, read.module) == ("10.0.0.1", 29501, True)
    assert read.training_script == "ds_llama.launcher.torch_rank"
    assert read.training_script_args == ["/logs", "it", "--nnodes", "", "-m"]
    assert starter.environment(job, 1) == {"CUDA_VISIBLE_DEVICES": "1,3"}
    assert python == sys.executable
