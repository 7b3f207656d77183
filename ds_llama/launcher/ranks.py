"""The ranks of one host: DeepSpeed's launch.py, who is below it, and how each of them ends."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from ds_llama.launcher import failure, marks, routes
from ds_llama.launcher.environment import rank_environment
from ds_llama.launcher.failure import Failure
from ds_llama.launcher.job import Job
from ds_llama.launcher.orphan import SUPERVISOR
from ds_llama.launcher.processes import end_session, kill_session
from ds_llama.launcher.status import exit_code, of_zombie

_POLL_S = 0.1
_OUTPUT_BYTES = 1 << 15
# What of a surrounding launch would be taken for this one's.
_FOREIGN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CUDA_VISIBLE_DEVICES")


class Ranks:
    """Started by its construction. Not for more than one thread."""

    def __init__(self, job: Job, index: int) -> None:
        self.job, self.host, self.wanted = job, job.hosts[index].name, job.ranks(index)
        self.pids: dict[int, int] = {}
        self.codes: dict[int, int | None] = {}
        self._ends: queue.SimpleQueue[tuple[int, int | None]] = queue.SimpleQueue()
        self._marks = Path(tempfile.mkdtemp(prefix="ds-llama-"))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._read_bytes, self._began = 0, time.time()
        Path(job.logs).mkdir(parents=True, exist_ok=True)
        self.launch = subprocess.Popen(
            self._argv(index),
            cwd=job.cwd,
            env=self._environment(index),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _argv(self, index: int) -> list[str]:
        job = self.job
        words = ["-u", "-m", "deepspeed.launcher.launch", f"--world_info={job.world_info()}"]
        words += [f"--node_rank={index}", f"--master_addr={job.master_addr}"]
        words += [f"--master_port={job.master_port}", f"--enable_each_rank_log={job.logs}"]
        return [job.python, *words, "--log_level=critical", "--module", job.module, *job.arguments]

    def _environment(self, index: int) -> dict[str, str]:
        job = self.job
        base = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        env = rank_environment(len(self.wanted), {**base, **job.env})
        if len(job.hosts) > 1:
            env.update(routes.for_collectives(job.master_addr, env))
        else:
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        return {**env, marks.FOLDER: str(self._marks), SUPERVISOR: str(os.getpid())}

    def fallen(self) -> list[Failure]:
        """Ranks that have failed since the last call, in the order of their ends."""
        self._find()
        found = []
        while not self._ends.empty():
            rank, code = self._ends.get()
            self.codes[rank] = code
            if not self._has_finished(rank):
                found.append(self.describe(rank))
        code = self.launch.poll()
        if code and not self.pids:  # it never came so far as to start one
            what = f"DeepSpeed's launch.py on {self.host} ended with exit code {exit_code(code)}"
            remedy = f"see what it said above, after `{self.host}:`"
            found.append(Failure(self.host, what, exit_code(code), remedy=remedy))
        return found

    def describe(self, rank: int) -> Failure:
        """A rank that did not finish; its code is launch.py's where nobody else knows it."""
        code = self.codes.get(rank)
        if code is None or code == 0:
            code = exit_code(self.launch.poll() or 1)
        log = next(map(str, sorted(Path(self.job.logs).glob(f"*_rank{rank}.log"))), "")
        return failure.of_rank(self.host, rank, code, place=self._place(rank), log=log)

    def unfinished(self) -> list[int]:
        """Ranks that left no mark."""
        return [rank for rank in self.wanted if not self._has_finished(rank)]

    def output(self) -> Iterator[str]:
        """What rank 0 has printed since the last call; nothing on other hosts."""
        logs = sorted(Path(self.job.logs).glob("*_rank0.log")) if 0 in self.wanted else []
        for log in logs[:1]:
            with log.open("rb") as file:
                file.seek(self._read_bytes)
                while data := file.read(_OUTPUT_BYTES):
                    self._read_bytes += len(data)
                    yield self._decoder.decode(data)

    def ask(self) -> None:
        """Have the ranks save and end: SIGTERM, to all of them at once.

        launch.py would ask one after the other, each when the one before has ended.
        """
        self._find()
        for rank, pid in self.pids.items():
            if rank not in self.codes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def end(self, patience_s: float) -> None:
        """End what is left of the session: `patience_s` after it was asked to, by force."""
        if patience_s:
            end_session(self.launch.pid, patience_s=patience_s)
        else:
            kill_session(self.launch.pid)
        self.launch.wait()
        deadline = time.monotonic() + 1.0
        while len(self.codes) < len(self.pids) and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                rank, code = self._ends.get(timeout=_POLL_S)
                self.codes[rank] = code

    def close(self) -> None:
        """The marks are read."""
        shutil.rmtree(self._marks, ignore_errors=True)

    def _has_finished(self, rank: int) -> bool:
        return marks.has_finished(self._marks, rank)

    def _find(self) -> None:
        """Learn the ranks' pids: launch.py's children, once they have become what they shall be."""
        if len(self.pids) == len(self.wanted):
            return
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.launch.pid).children():
                with contextlib.suppress(psutil.Error, KeyError):
                    rank = int(child.environ()["RANK"])
                    if rank not in self.pids:
                        self.pids[rank] = child.pid
                        self._watch(rank, child.pid)

    def _watch(self, rank: int, pid: int) -> None:
        watch = threading.Thread(target=self._wait, args=(rank, pid), daemon=True)
        watch.name = f"end of rank {rank}"
        watch.start()

    def _wait(self, rank: int, pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except (AttributeError, OSError):  # no Linux, a sandbox that forbids it, or it has ended
            while psutil.pid_exists(pid) and of_zombie(pid) is None:
                time.sleep(_POLL_S)
        else:
            select.select([descriptor], [], [])
            os.close(descriptor)
        self._ends.put((rank, of_zombie(pid)))

    def _place(self, rank: int) -> str:
        """Step and phase that the rank wrote last for those who watch it (trainer.watching)."""
        if self.job.output is None:
            return ""
        found = Path(self.job.output).glob(f".ranks/*/{rank:05d}.json")
        for path in found:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if path.stat().st_mtime > self._began:  # else of an attempt that was killed
                    place = json.loads(path.read_bytes())
                    return f"step {place['step']}, {place['phase']}"
        return ""
