from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ds_llama.commit import disk, lock
from ds_llama.commit.lock import RunLock
from ds_llama.errors import CheckpointError

HOLD = """
import sys, time
from ds_llama.commit.lock import RunLock
RunLock(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_run_stops_with_the_name_of_the_first(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(CheckpointError) as caught:
        RunLock(tmp_path).acquire()
    assert f"in use by process {os.getpid()} on {socket.gethostname()}" in caught.value.what
    assert "running since 2" in caught.value.what
    assert caught.value.where == str(tmp_path)
    assert "output=" in caught.value.remedy
    with RunLock(tmp_path):
        pass


def test_the_run_folders_name_is_on_the_disk_whoever_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in (tmp_path / "runs" / "a", tmp_path / "runs" / "b"):
        for _ in range(2):  # made by this one, and found by the next: a killed one may have made it
            synced: list[Path] = []
            monkeypatch.setattr(disk, "sync_folder", synced.append)
            with RunLock(run):
                assert run.parent in synced


def test_a_killed_holder_frees_the_lock_at_once(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=f"process {holder.pid} on"):
            RunLock(tmp_path).acquire()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with RunLock(tmp_path) as mine:
        assert json.loads(mine.path.read_text())["pid"] == os.getpid()


def test_a_holder_that_has_not_written_its_name_yet(tmp_path: Path) -> None:
    with RunLock(tmp_path) as held:
        held.path.write_text("")
        with pytest.raises(CheckpointError, match="in use by another run"):
            RunLock(tmp_path).acquire()


def test_without_flock_the_content_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(lock._UNSUPPORTED.copy().pop(), "not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    path = tmp_path / lock.NAME
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    holder = {"host": socket.gethostname(), "pid": dead.pid, "started": "2026-01-01T00:00:00Z"}
    path.write_text(json.dumps(holder))
    with RunLock(tmp_path), pytest.raises(CheckpointError, match=f"process {os.getpid()}"):
        RunLock(tmp_path).acquire()
    path.write_text(json.dumps({**holder, "host": "elsewhere"}))
    with pytest.raises(CheckpointError, match=r"on elsewhere, running since 2026-01-01T00:00:00Z"):
        RunLock(tmp_path).acquire()
