"""`ds-llama train` as a child that is watched while it saves, and killed."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from ds_llama.commit import names

GONE_S, HUNG_S, _POLL_S = 60.0, 300.0, 0.001
_PR_SET_CHILD_SUBREAPER = 36


class Launch:
    """`ds-llama train` on two ranks, and who belongs to it."""

    def __init__(self, run: Path, output: Path) -> None:
        self.root, self.log = output / "checkpoints", output.with_suffix(".log")
        self._began_ns, self.began = time.time_ns(), time.monotonic()
        words = ("-m", "ds_llama", "train", str(run), f"output={output}", "--nproc", "2")
        with self.log.open("w") as log:
            self.child = subprocess.Popen(
                [sys.executable, *words], stdout=log, stderr=log, start_new_session=True
            )

    def victims(self, kind: str, draw: random.Random) -> tuple[str, list[psutil.Process]]:
        """Processes to kill. The launcher's own, while no rank has been started."""
        line = [psutil.Process(self.child.pid)]
        ranks = line[0].children()
        while len(line) < 3 and ranks:  # DeepSpeed's runner and launch.py have one child each
            line.append(ranks[0])
            ranks = ranks[0].children()
        if kind == "launcher" or len(line) < 3 or not ranks:
            index = draw.randrange(len(line))
            return ("ds-llama train", "runner", "launch.py")[index], [line[index]]
        chosen = ranks if kind == "all ranks" else [draw.choice(ranks)]
        return kind, chosen

    def is_saving(self) -> bool:
        """Whether this launch's own save is under way; a killed one's leavings are older."""
        with suppress(OSError), os.scandir(self.root) as entries:
            return any(_is_newer(e, self._began_ns) for e in entries if _is_being_saved(e.name))
        return False

    def wait(self, condition: Callable[[], bool] = lambda: False, limit_s: float = HUNG_S) -> bool:
        """Whether `condition` came true, before the launch ended or `limit_s` was over."""
        end = time.monotonic() + limit_s
        while self.child.poll() is None and time.monotonic() < end:
            if condition():
                return True
            time.sleep(_POLL_S)
        return False

    def read_orphans(self) -> bool:
        """Let zombies that this process has adopted go: launch.py waits 30 s for one; False."""
        with suppress(ChildProcessError):
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None and found.si_pid != self.child.pid:
                os.waitpid(found.si_pid, 0)
        return False

    def ended(self) -> int:
        """The exit code of a launch that nobody kills; raises SystemExit for one that hangs."""
        self.wait()
        if self.child.poll() is None:
            raise SystemExit(f"{self.log} did not end: {self.log.read_text()[-3000:]}")
        return int(self.child.returncode)

    def gone_after(self, began: float) -> float | None:
        """Seconds since `began` until no process of the launch is alive.

        None, and an end to them, if they stay. Those that lose their parent become this process's
        children (`adopt_orphans`).
        """
        while True:
            left = [p for p in psutil.Process().children(recursive=True) if _alive(p)]
            if not left and self.child.poll() is not None:
                with suppress(ChildProcessError):
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        pass
                return time.monotonic() - began
            if time.monotonic() - began > GONE_S:
                break
            time.sleep(0.05)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        self.child.wait()
        return None


def adopt_orphans() -> None:
    """Make this process the parent of every descendant that loses its own."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _is_being_saved(name: str) -> bool:
    return name.startswith((names.STAGING, names.REPLACED, names.REMOVING))


def _is_newer(entry: os.DirEntry[str], time_ns: int) -> bool:
    with suppress(OSError):
        return entry.stat().st_mtime_ns > time_ns
    return False


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
