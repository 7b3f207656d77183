"""`ds-llama train` on hosts, as far as it is text: which hosts, and the commands of --dry-run."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from ds_llama.cli.main import main

RUN = str(Path(__file__).parents[3] / "ds_configs/runs/quickstart.json")


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hostfile of three hosts that are nowhere; an empty home and working folder."""
    for name in ("RANK", "DS_ENV_FILE", "SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text("node-0 slots=4\nnode-1 slots=4\nnode-2 slots=4\n")
    return "hosts"


def dry(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines that a dry run prints, and nothing on stderr."""
    assert main(["train", RUN, "--dry-run", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_a_line_for_each_host(hosts: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dry(capsys, "--hostfile", hosts, "train.steps=3")
    assert [shlex.split(line)[-2] for line in lines] == ["node-0", "node-1", "node-2"]
    for number, line in enumerate(lines):
        inner = shlex.split(shlex.split(line)[-1])
        assert f"--node_rank={number}" in inner
        assert inner[-6:] == ["ds_llama", "train", RUN, "train.steps=3", "--resume", "auto"]


def test_of_the_hosts_that_are_chosen(hosts: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--include", "node-2:0,3@node-1", "--launcher", "mpich")
    [line] = dry(capsys, "--hostfile", hosts, *words)
    argv = shlex.split(line)
    assert argv[argv.index("-hosts") + 1] == "node-1:4,node-2:2"
    assert len(dry(capsys, "--hostfile", hosts, "--exclude", "node-0")) == 2
    [line] = dry(capsys, "--hostfile", hosts, "--exclude", "node-0", "--nodes", "1")
    assert shlex.split(line)[-2] == "node-1"


@pytest.mark.parametrize("launcher", ["pdsh", "openmpi", "mpich", "torchrun"])
def test_every_launcher(hosts: str, capsys: pytest.CaptureFixture[str], launcher: str) -> None:
    program = {"openmpi": "mpirun", "mpich": "mpi", "torchrun": "ssh"}.get(launcher, launcher)
    for line in dry(capsys, "--hostfile", hosts, "--launcher", launcher):
        assert any(word.startswith(program) for word in shlex.split(line))


def test_one_machine(hosts: str, capsys: pytest.CaptureFixture[str]) -> None:
    [line] = dry(capsys, "--nproc", "2")
    assert line.startswith("env ")
    assert shlex.split(line)[-4:] == ["train", RUN, "--resume", "auto"]


def test_a_variable_of_the_environment_file(
    hosts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".deepspeed_env").write_text("# all\nODD=a b; touch executed\n")
    inner = shlex.split(shlex.split(dry(capsys, "--hostfile", hosts)[0])[-1])
    assert "ODD=a b; touch executed" in inner
    (tmp_path / ".deepspeed_env").write_text("ODD=$(touch executed)\n")
    assert main(["train", RUN, "--dry-run", "--hostfile", hosts]) == 1
    assert f"where: {tmp_path}/.deepspeed_env:1:5\n" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("words", "code", "lines"),
    [
        (["--dry-run"], 2, ["error: one of --nproc and --hostfile says where the ranks run"]),
        (
            ["--nproc", "2", "--include", "a", "--dry-run"],
            2,
            ["error: --include is for the hosts of a hostfile", "remedy: give --hostfile FILE,"],
        ),
        (
            ["--hostfile", "hosts", "--include", "node-1:4", "--dry-run"],
            2,
            ["error: node-1 has no slot 4", "where: --include, column 8", "remedy: its slots are"],
        ),
        (
            ["--hostfile", "hosts", "--include", "node-1", "--exclude", "node-1"],
            2,
            ["error: --include and --exclude exclude each other", "where: command line"],
        ),
        (
            ["--hostfile", "hosts", "--launcher", "horovod"],
            2,
            ["error: there is no launcher 'horovod'", "remedy: give one of ssh, pdsh, torchrun"],
        ),
        (
            ["--hostfile", "hosts", "--nodes", "4", "--dry-run"],
            2,
            ["error: 4 hosts are asked for, and there are 3"],
        ),
        (["--hostfile", "evil"], 1, ["error: '-oProxyCommand=", "where: evil:1:1"]),
        (["--hostfile", "hosts", "--bind_cores_to_rank"], 2, ["error: No such option"]),
        pytest.param(
            ["--hostfile", "twice"],
            1,
            ["error: 127.0.0.1 and localhost are one machine (this machine)", "where: twice:2"],
            marks=pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh client"),
        ),
    ],
)
def test_what_is_wrong(
    hosts: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    lines: list[str],
) -> None:
    (tmp_path / "evil").write_text("-oProxyCommand=touch${IFS}executed slots=1\n")
    (tmp_path / "twice").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    assert main(["train", RUN, *words]) == code
    err = capsys.readouterr().err
    for line in lines:
        assert f"\n{line}" in f"\n{err}"
    assert not (tmp_path / "executed").exists()


def test_hosts_that_are_waited_for(hosts: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Which takes asking them, and a duration."""
    words = ["train", RUN, "--hostfile", hosts, "--wait-for-hosts"]
    assert main([*words, "10m", "--no-check"]) == 2
    said = capsys.readouterr().err
    assert "error: hosts that are not asked are not waited for\nwhere: --wait-for-hosts\n" in said
    assert "remedy: leave --no-check away" in said
    assert main([*words, "soon"]) == 2
    assert "'soon' is not a duration\nwhere: --wait-for-hosts\n" in capsys.readouterr().err
