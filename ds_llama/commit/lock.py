"""One run in a folder at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from ds_llama.commit import disk
from ds_llama.errors import CheckpointError

NAME = ".lock"
_UNSUPPORTED = {errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS}


class RunLock:
    """`with RunLock(folder):` holds a run folder; a second run stops with the name of the first.

    The lock is the kernel's (flock), so that it is free the moment its holder dies, however it
    dies; the file's content only says who holds it. A file system without flock falls back to that
    content: a dead process of this host holds nothing. Raises CheckpointError when another run
    holds it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / NAME
        self._descriptor: int | None = None

    def acquire(self) -> RunLock:
        """Take the lock now; `release` gives it back."""
        with disk.explained("locking the run folder", self.path.parent):
            disk.make_folder(self.path.parent)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._take(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def release(self) -> None:
        """Give the lock back; the file stays, since removing it would race with the next holder."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RunLock:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                holder = _holder(descriptor)
                if not holder or not _alive(holder):
                    return
            elif error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise disk.failure(error, "locking the run folder", self.path) from error
            raise self._taken(_holder(descriptor)) from None

    def _taken(self, holder: dict[str, Any]) -> CheckpointError:
        who = "another run"
        if holder:
            who = "process {pid} on {host}, running since {started}".format(**holder)
        return CheckpointError(
            f"this run folder is in use by {who}",
            where=str(self.path.parent),
            remedy="wait for that run or stop it, or give this one another folder (output=…)",
        )


def _myself() -> dict[str, Any]:
    started = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started}


def _holder(descriptor: int) -> dict[str, Any]:
    """Who the file says; {} when its writer has not come to that yet."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return {key: content[key] for key in ("host", "pid", "started")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _alive(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return True  # nothing to go by: better one run too few than two in a folder
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        return True
    return True
