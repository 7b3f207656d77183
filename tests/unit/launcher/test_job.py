"""A job arrives as it was sent, and the lines that start its agents say the same to every shell."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.job import Job, exported
from ds_llama.launcher.transports import pdsh, ssh

WORDS = st.text(st.characters(exclude_characters="\0", codec="utf-8"))
HOSTS = (Host("a", 1), Host("me@b", 3, devices=(2, 5, 7)))


def job(arguments: tuple[str, ...] = (), **more: object) -> Job:
    return Job(HOSTS, "ds_llama", arguments, "/runs/logs", cwd="/work", **more)  # type: ignore[arg-type]


@given(st.lists(WORDS), st.dictionaries(WORDS, WORDS))
def test_a_job_arrives_as_it_was_sent(arguments: list[str], env: dict[str, str]) -> None:
    sent = job(tuple(arguments), env=env, ops=("cpu_adam",)).with_master("10.0.0.1", 29501)
    assert Job.from_json(json.loads(json.dumps(sent.to_json()))) == sent


def test_ranks_and_devices_of_uneven_hosts() -> None:
    assert (job().world_size, job().ranks(0), job().ranks(1)) == (4, range(1), range(1, 4))
    read = json.loads(base64.urlsafe_b64decode(job().world_info()))
    assert read == {"a": [0], "me@b": [2, 5, 7]}


def test_no_argument_is_on_the_way_through_a_shell() -> None:
    words = ("$(reboot)", "; reboot")
    for argv in (*ssh.commands(job(words)), *pdsh.commands(job(words))):
        assert "reboot" not in " ".join(argv)


def test_a_host_is_never_an_option() -> None:
    for host, argv in zip(HOSTS, ssh.commands(job()), strict=True):
        assert argv[argv.index("--") + 1] == host.name
        assert "BatchMode=yes" in argv


@settings(max_examples=20)
@given(WORDS.filter(bool))
def test_the_interpreter_of_any_name(python: str) -> None:
    """What a shell makes of the line is the argv that was meant; pdsh halves its percent signs."""
    meant = shlex.split(ssh.commands(job(python=python))[0][-1])
    assert meant[-4:] == [python, "-m", "ds_llama.launcher.agent", "0"]
    line = ssh.commands(job(python=python))[0][-1].replace("exec env", "printf '%s\\0'", 1)
    seen = subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout
    assert seen.decode().split("\0")[:-1] == meant[2:]
    [argv] = pdsh.commands(job(python=python))
    words = shlex.split(argv[-1].replace("%%", "%"))
    assert words[4:7] == [python, "-m", "ds_llama.launcher.agent"]
    assert words[-1] == "%n"


def test_what_is_exported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".deepspeed_env").write_text("A=$5 && b\n")
    env = {"NCCL_DEBUG": "INFO", "PYTHONPATH": "/x", "HOME": "/root", "LD_PRELOAD": "/evil.so"}
    env |= {"DS_ACCELERATOR": "cpu", "DS_LLAMA_LAUNCH": "/tmp/x", "CUDA_VISIBLE_DEVICES": "0"}
    assert exported(env) == {
        "A": "$5 && b",
        "NCCL_DEBUG": "INFO",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), "/x", str(repository)]),
    }
