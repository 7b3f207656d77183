"""One rank under mpirun, as its parent makes it: the variables of both MPIs, and a pipe for PMI."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ds_llama.launcher.mpi_rank import place

WORLD = {"a": [0], "b": [4, 6]}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "3", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(("environ", "rank", "local"), [(OPENMPI, "2", "1"), (HYDRA, "1", "0")])
def test_who_a_rank_is(environ: dict[str, str], rank: str, local: str) -> None:
    assert place(environ, WORLD) == {
        "RANK": rank,
        "WORLD_SIZE": "3",
        "LOCAL_RANK": local,
        "LOCAL_SIZE": "2",
        "CROSS_RANK": "1",
        "CROSS_SIZE": "2",
        "CUDA_VISIBLE_DEVICES": "4,6",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PMI_SIZE": "4"}, "mpirun made rank 1 of 4 number 0 on its host, which is not what"),
        ({"MPI_LOCALRANKID": "1"}, "mpirun made rank 1 of 3 number 1 on its host, which is not"),
        ({"MPI_LOCALNRANKS": "3"}, "mpirun put 3 ranks on host 1, not 2"),
    ],
)
def test_a_rank_elsewhere_than_the_hostfile_says(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        place({**HYDRA, **changes}, WORLD)


def test_no_mpirun() -> None:
    with pytest.raises(SystemExit, match="no mpirun of Open MPI or MPICH has started this process"):
        place({}, WORLD)


def start(
    folder: Path, program: str, *words: str, rank: int = 0
) -> tuple[subprocess.Popen[str], int]:
    """A rank of module `it`, with this text; and the end of the pipe that Hydra would read."""
    (folder / "it.py").write_text(program)
    ours, theirs = os.pipe()
    world = base64.urlsafe_b64encode(json.dumps({"a": [0], "b": [0]}).encode()).decode()
    env = {**os.environ, "PMI_FD": str(theirs), "PMI_RANK": str(rank), "PMI_SIZE": "2"}
    env |= {"MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1", "NCCL_SOCKET_IFNAME": "lo"}
    env |= {"GLOO_SOCKET_IFNAME": "lo"}
    env["PYTHONPATH"] = f"{folder}:{Path(__file__).parents[3]}"
    argv = [f"--world_info={world}", "--master_addr=x", "--master_port=1", "--ops="]
    argv += [f"--logs={folder}/logs", "it", *words]
    process = subprocess.Popen(
        [sys.executable, "-m", "ds_llama.launcher.mpi_rank", *argv],
        env=env,
        pass_fds=[theirs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    return process, ours


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("", 0),
    ],
)
def test_a_failure_is_told_to_hydra(tmp_path: Path, program: str, code: int) -> None:
    process, pipe = start(tmp_path, program)
    process.communicate(timeout=120)
    assert process.returncode == code
    said = b"cmd=abort exitcode=%d\n" % code if code else b""
    assert os.read(pipe, 100) == said
    os.close(pipe)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_rank_prints_is_kept(tmp_path: Path, rank: int) -> None:
    """The first one's is shown as it comes, of another one only how it failed."""
    program = "import sys; print('é', flush=True); sys.exit('it is lost')"
    process, pipe = start(tmp_path, program, rank=rank)
    out, err = process.communicate(timeout=120)
    os.close(pipe)
    [log] = (tmp_path / "logs").glob(f"*_rank{rank}.log")
    assert log.read_text() == "é\nit is lost\n"
    assert out == (log.read_text() if rank == 0 else "")
    host = "ab"[rank]
    said = f"error: rank {rank} on {host} ended with exit code 1\nwhere: {host}:{log}\n"
    tail = f"the last lines of rank {rank} on {host}:\n  é\n  it is lost\n" if rank else ""
    assert err == f"{tail}{said}remedy: see its log\n"


def test_a_rank_that_only_lost_another(tmp_path: Path) -> None:
    process, pipe = start(tmp_path, "raise SystemExit('Connection closed by peer')", rank=1)
    _, err = process.communicate(timeout=120)
    os.close(pipe)
    [log] = (tmp_path / "logs").glob("*_rank1.log")
    what = "rank 1 on b ended with exit code 1: another rank was gone"
    assert err == f"{what}; log b:{log}\n"


def test_arguments_that_look_like_its_own(tmp_path: Path) -> None:
    words = ["--ops=x", "--help", "--", "--master_port", ""]
    process, pipe = start(tmp_path, "import json, sys; print(json.dumps(sys.argv[1:]))", *words)
    out, _ = process.communicate(timeout=120)
    os.close(pipe)
    assert json.loads(out) == words


def test_the_signal_that_mpirun_passes_on_is_one_to_save_at(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print('up', flush=True)\n"
        "time.sleep(3600)\n"
    )
    process, pipe = start(tmp_path, program)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=120)
    os.close(pipe)
    assert process.returncode == 143
