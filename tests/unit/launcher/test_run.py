"""Two real processes under DeepSpeed's real launcher: exit codes, signals, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ds_llama.errors import CallError, RunError
from ds_llama.launcher import run as launching
from ds_llama.launcher import several
from ds_llama.launcher.cores import usable_cores
from ds_llama.launcher.run import launch
from ds_llama.launcher.status import exit_code


def facts(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{rank}.json").read_text())
    return found


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Started:
    """`top.py` in a process of its own, both ranks up."""

    def __init__(self, folder: Path, **do: str) -> None:
        self.top = subprocess.Popen(
            [sys.executable, str(folder / "top.py")],
            env={**os.environ, **do},
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: all((folder / f"{rank}.json").exists() for rank in (0, 1)))
        self.ranks = [facts(folder, rank)["pid"] for rank in (0, 1)]
        self.launch = facts(folder, 0)["parent"]
        self.below = [*self.ranks, self.launch]

    def end(self) -> tuple[int, str]:
        """Exit code and stderr, after checking that no process stayed."""
        _, printed = self.top.communicate(timeout=60)
        wait_until(lambda: not any(map(is_alive, self.below)), seconds=10)
        return self.top.returncode, printed


NASTY = ["a b", "x;y", 'it\'s "q"', "--", "$HOME", "", "-x", "*", "`id`", "a\nb", "é", "--nproc"]


def test_arguments_and_environment_arrive(ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch(["train", *NASTY], nproc=2, module="one_rank") == 0
    for rank in (0, 1):
        found = facts(ranks, rank)
        assert found["argv"] == [f"--local_rank={rank}", "train", *NASTY]
        env = found["env"]
        assert (env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) == (str(rank), str(rank), "2")
        assert int(env["OMP_NUM_THREADS"]) == max(1, usable_cores() // 2)
        assert env["DS_LLAMA_SUPERVISOR"] == str(os.getpid())
        assert not Path(env["DS_LLAMA_LAUNCH"]).exists()


@pytest.mark.parametrize(("do", "code"), [("exit 3", 3), ("signal 9", 137)])
def test_the_code_of_the_rank_that_failed(
    do: str,
    code: int,
    ranks: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK_0", "sleep")
    monkeypatch.setenv("RANK_1", do)
    assert launch([], nproc=2, module="one_rank", log=ranks / "log") == code
    log = (ranks / "log").read_text()
    assert "rank 0 is up" in log
    assert "rank 1 is up" in log
    assert capfd.readouterr() == ("", "")
    wait_until(lambda: not any(is_alive(facts(ranks, rank)["pid"]) for rank in (0, 1)), 10)


def test_what_takes_too_long_is_ended(ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        monkeypatch.setenv(f"RANK_{rank}", "sleep")
    before, began = set(psutil.Process().children(recursive=True)), time.monotonic()
    assert launch([], nproc=2, module="one_rank", log=ranks / "log", timeout_s=2.0) == 124
    assert 2 <= time.monotonic() - began < 40
    wait_until(lambda: set(psutil.Process().children(recursive=True)) <= before, 10)
    for up in ranks.glob("[01].json"):
        wait_until(lambda: not is_alive(facts(ranks, int(up.stem))["pid"]), 10)  # noqa: B023


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all(signum: signal.Signals, ranks: Path) -> None:
    started = Started(ranks, RANK_0="sleep", RANK_1="sleep")
    started.top.send_signal(signum)
    assert started.end()[0] == 128 + signum


def test_an_announced_end_has_the_ranks_save(ranks: Path) -> None:
    """launch.py, which every process of a Slurm step is sent it with, goes on."""
    started = Started(ranks, RANK_0="save", RANK_1="save")
    os.kill(started.launch, signal.SIGUSR1)
    started.top.send_signal(signal.SIGUSR1)
    assert started.end()[0] == 128 + signal.SIGUSR1
    for rank in (0, 1):
        assert (ranks / f"saved-{rank}").read_text() == str(int(signal.SIGUSR1))


def test_a_failure_is_followed_by_another_attempt(
    ranks: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(several, "_PAUSE_S", 0)
    monkeypatch.setenv("RANK_0", "once 3")
    code = launch(["first"], nproc=1, module="one_rank", restarts=2, again=["again"])
    assert (code, facts(ranks, 0)["argv"][-1]) == (0, "again")
    out, err = capfd.readouterr()
    assert out.splitlines() == ["rank 0 is up", "starting again (1 left)", "rank 0 is up"]
    assert err == ""
    monkeypatch.setenv("RANK_0", "exit 0")  # without having finished
    with pytest.raises(RunError, match="1 of 1 ranks did not finish"):
        launch(["first"], nproc=1, module="one_rank", restarts=1)
    assert capfd.readouterr().err.count("error: 1 of 1 ranks did not finish") == 1


def test_a_second_signal_does_not_wait(ranks: Path) -> None:
    started = Started(ranks, RANK_0="deaf", RANK_1="deaf")
    started.top.send_signal(signal.SIGINT)
    time.sleep(1)
    assert started.top.poll() is None
    started.top.send_signal(signal.SIGINT)
    assert started.end()[0] == 130


def test_a_killed_launcher_is_no_success(ranks: Path) -> None:
    started = Started(ranks, RANK_0="sleep", RANK_1="sleep")
    os.kill(started.launch, signal.SIGKILL)
    assert started.end() == (137, "error: signal 9 ended the launcher of the ranks\n")


def test_a_rank_that_leaves_early_is_no_success(
    ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its exit code says."""
    monkeypatch.setenv("RANK_1", "exit 0")
    with pytest.raises(RunError, match="1 of 2 ranks did not finish") as caught:
        launch([], nproc=2, module="one_rank")
    assert caught.value.where == "rank 1"


def test_ranks_die_with_a_killed_supervisor(ranks: Path) -> None:
    started = Started(ranks, RANK_0="sleep", RANK_1="sleep")
    started.top.kill()
    assert started.end()[0] == -signal.SIGKILL


@pytest.mark.parametrize(
    ("code", "shell"), [(0, 0), (1, 1), (2, 2), (143, 143), (-9, 137), (-15, 143), (247, 137)]
)
def test_exit_codes(code: int, shell: int) -> None:
    assert exit_code(code) == shell


@pytest.mark.parametrize("given", [{}, {"nproc": 2, "hostfile": "h"}])
def test_where_the_ranks_run_is_said_once(given: dict[str, Any]) -> None:
    with pytest.raises(CallError, match="one of --nproc and --hostfile") as caught:
        launch([], **given)
    assert caught.value.where == "command line"
    assert caught.value.remedy.startswith("give --nproc N for this machine")


def test_no_hostfile_is_an_error_and_no_launch(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="the hostfile cannot be read: No such file"):
        launch([], hostfile=tmp_path / "nothing")


def test_patience_is_longer_than_deepspeeds() -> None:
    """launch.py kills a rank 30 s after asking it to end."""
    assert launching.PATIENCE_S > 30
