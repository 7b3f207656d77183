"""What --dry-run prints, run by the shells that it is meant for."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from deepspeed.launcher import launch as ds_launch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ds_llama.errors import CallError
from ds_llama.launcher import passthrough, shown
from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.job import Job

HOSTS = (Host("a", 1), Host("b", 2, (1, 3)))
HOSTILE = (
    "-oProxyCommand=touch executed",
    "$(touch executed)",
    "`touch executed`",
    "; touch executed",
    "&& touch executed",
    "| touch executed",
    "\n touch executed",
    "' touch executed '",
    '" touch executed "',
    "\\",
    "!!",
    "~",
    "*",
    "{a,b}",
    "%n%%h",
    "$HOME",
    "",
    "é\u202e",
    "--node_rank=0",
)
WORD = st.text(st.characters(exclude_characters="\0", codec="utf-8")) | st.sampled_from(HOSTILE)


def job(words: Sequence[str] = (), *, hosts: Sequence[Host] = HOSTS, **more: object) -> Job:
    return Job(tuple(hosts), "ds_llama", tuple(words), "/logs", **more)  # type: ignore[arg-type]


def split(line: str) -> list[str]:
    """The words that bash makes of a line, the shell that a person copies it into."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


def test_one_line_a_host() -> None:
    first, second = shown.lines(job(["train", "run.json"], cwd="/work", python="py"), "ssh")
    assert first.startswith("ssh -T -o BatchMode=yes -o ConnectTimeout=20 ")
    argv = split(second)
    assert argv[-3:-1] == ["--", "b"]
    assert argv[-1].startswith("cd /work && exec env PYTHONPATH=")
    assert argv[-1].endswith(" --log_level=critical --module ds_llama train run.json")
    assert "--node_rank=1 --master_addr=a --master_port=" in argv[-1]


@pytest.mark.parametrize("launcher", ["ssh", "pdsh", "torchrun", "openmpi", "mpich"])
def test_a_line_is_one_line(launcher: str) -> None:
    starter = "torchrun" if launcher == "torchrun" else "deepspeed"
    found = shown.lines(job(HOSTILE, env={"A": "b\nc"}, starter=starter), launcher)
    assert not any("\n" in line for line in found)
    assert len(found) == (1 if launcher in ("pdsh", "openmpi", "mpich") else 2)


def test_pdsh_counts_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pdsh makes it, DeepSpeed's own parser reads it: the number once, and what was given."""
    [line] = shown.lines(job(HOSTILE, python="py"), "pdsh")
    argv = split(line)
    assert argv[argv.index("-w") + 1] == "a,b"
    assert "PDSH_RCMD_TYPE=ssh" in argv
    on_host = argv[-1].replace("%n", "1", 1).replace("%%", "%")
    words = shlex.split(on_host)
    monkeypatch.setattr("sys.argv", words[words.index("deepspeed.launcher.launch") :])
    read = ds_launch.parse_args()
    assert (read.node_rank, read.training_script) == (1, "ds_llama")
    assert tuple(read.training_script_args) == HOSTILE


def test_torchrun_gets_the_devices_from_us() -> None:
    first, second = shown.lines(job(starter="torchrun"), "torchrun")
    assert "CUDA_VISIBLE_DEVICES=0 " in first
    assert "CUDA_VISIBLE_DEVICES=1,3 " in split(second)[-1]
    assert "--nnodes=2 --node_rank=1 --nproc_per_node=2 --master_addr=a" in second


@pytest.mark.parametrize("launcher", ["openmpi", "mpich"])
def test_mpi_takes_hosts_by_their_slots(launcher: str) -> None:
    [line] = shown.lines(job(HOSTILE, env={"A": "$(b)"}, cwd="/w"), launcher)
    argv = split(line)
    assert "A=$(b)" in argv[: argv.index("-n")]
    assert "a:1,b:2" in argv
    assert argv[argv.index("-n") + 1] == "3"
    assert argv[-len(HOSTILE) :] == list(HOSTILE)
    with pytest.raises(CallError, match=f"{launcher} takes no user in a host's name") as caught:
        shown.lines(job(hosts=[Host("me@b", 1, where="hosts:7")]), launcher)
    assert caught.value.where == "hosts:7"
    assert caught.value.remedy == "write `Host b` and `User …` into ~/.ssh/config"


@given(
    st.lists(
        WORD | st.text("\x00\x07\x1b\x7f\x85\t\r\n'\\\\x1 ").map(lambda t: t.replace("\0", "")),
        min_size=1,
    )
)
@settings(max_examples=30)
def test_any_word_on_one_line(words: list[str]) -> None:
    line = shown.line(words)
    assert not {"\n", "\r", "\x1b"} & set(line)
    assert split(line) == words


def test_one_host_meets_itself() -> None:
    alone = passthrough.with_master(job(hosts=[Host("b", 2)]))
    assert alone.master_addr == "127.0.0.1"


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that prints its arguments."""
    path = tmp_path_factory.mktemp("show") / "it's $(odd); a python"
    path.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    path.chmod(0o755)
    return path


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(list(HOSTILE), {"A": "$(touch executed)"})
@given(
    st.lists(WORD, max_size=6),
    st.dictionaries(st.from_regex(r"X_[A-Z]{1,4}", fullmatch=True), WORD, max_size=3),
)
def test_arguments_arrive_unchanged_through_a_shell(
    show: Path, words: list[str], env: dict[str, str]
) -> None:
    """sshd gives the line to the user's shell by `sh -c`."""
    cwd = show.parent
    line = shown.lines(job(words, hosts=HOSTS[:1], env=env, cwd=str(cwd), python=str(show)), "ssh")
    remote = split(line[0])[-1]
    done = subprocess.run(["sh", "-c", remote], capture_output=True, check=True)
    arrived = done.stdout.decode().split("\0")[:-1]
    assert arrived[arrived.index("--module") :] == ["--module", "ds_llama", *words]
    assert [path.name for path in cwd.iterdir()] == [show.name]
