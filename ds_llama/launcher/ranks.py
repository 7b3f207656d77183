"""The ranks of one host: launch.py, which starts them, and what becomes of each of them."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ds_llama.launcher import failure, marks, routes, starter
from ds_llama.launcher.environment import rank_environment
from ds_llama.launcher.failure import Failure
from ds_llama.launcher.job import Job
from ds_llama.launcher.orphan import SUPERVISOR
from ds_llama.launcher.processes import end_session, kill_session
from ds_llama.launcher.status import exit_code

_OUTPUT_BYTES = 1 << 15
# What of a surrounding launch would be taken for this one's.
_FOREIGN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CUDA_VISIBLE_DEVICES")


class Ranks:
    """Started by its construction. Not for more than one thread."""

    def __init__(self, job: Job, index: int) -> None:
        self.job, self.host, self.wanted = job, job.hosts[index].name, job.ranks(index)
        self._told: set[int] = set()
        self._marks = Path(tempfile.mkdtemp(prefix="ds-llama-"))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._read_bytes, self._began = 0, time.time()
        Path(job.logs).mkdir(parents=True, exist_ok=True)
        self.launch = subprocess.Popen(
            starter.argv(job, index),
            cwd=job.cwd,
            env=self._environment(index),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _environment(self, index: int) -> dict[str, str]:
        job = self.job
        base = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        env = rank_environment(len(self.wanted), {**base, **job.env})
        if len(job.hosts) > 1:
            env.update(routes.for_collectives(job.master_addr, env))
        else:
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        return {
            **env,
            **starter.environment(job, index),
            marks.FOLDER: str(self._marks),
            SUPERVISOR: str(os.getpid()),
        }

    @property
    def are_up(self) -> bool:
        """Whether there are any yet."""
        return bool(marks.started(self._marks))

    def fallen(self) -> list[Failure]:
        """Ranks that have failed since the last call, in the order of their ends."""
        ended = marks.ended(self._marks)
        new = [rank for rank in ended if rank not in self._told]
        self._told.update(new)
        found = [self.describe(rank) for rank in new if not self._has_finished(rank)]
        code = self.launch.poll()
        if code and not self.are_up:  # it never came so far as to start one
            what = f"launch.py on {self.host} ended with exit code {exit_code(code)}"
            remedy = f"see what it said above, after `{self.host}:`"
            found.append(Failure(self.host, what, exit_code(code), remedy=remedy))
        return found

    def describe(self, rank: int) -> Failure:
        """A rank that did not finish; one of which nothing is known has launch.py's code."""
        code = marks.ended(self._marks).get(rank)
        code = exit_code((self.launch.poll() or 1) if code is None else code)
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

    def ask(self, signum: int) -> None:
        """Have the ranks save and end, by a signal to all of them at once.

        launch.py would ask one after the other, each when the one before has ended.
        """
        ended = marks.ended(self._marks)
        for rank, pid in marks.started(self._marks).items():
            if rank not in ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)

    def end(self, patience_s: float) -> None:
        """End what is left of the session: `patience_s` after it was asked to, by force."""
        if patience_s:
            end_session(self.launch.pid, patience_s=patience_s)
        else:
            kill_session(self.launch.pid)
        self.launch.wait()

    def close(self) -> None:
        """The marks are read."""
        shutil.rmtree(self._marks, ignore_errors=True)

    def _has_finished(self, rank: int) -> bool:
        return marks.has_finished(self._marks, rank)

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
