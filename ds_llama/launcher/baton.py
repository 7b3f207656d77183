"""Locks around op builds: ours, which a dead process lets go of, and torch's, which it does not."""

from __future__ import annotations

import fcntl
import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ds_llama.errors import MachineError

_POLL_S = 0.5
_FOREIGN_STALE_S = 1800.0  # age at which a lock that no process of this host holds is dead


@contextmanager
def held(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock file; the kernel releases it with the process, so it is never stale.

    Raises MachineError after `timeout_s`, with the holder's pid.
    """
    deadline = time.monotonic() + timeout_s
    with open(path, "a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _busy(path, path.read_text().strip(), timeout_s) from None
                time.sleep(_POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def clear_stale(root: Path, name: str, timeout_s: float) -> None:
    """Remove torch's lock of an op when no living process holds it; wait while one does.

    torch keeps the file open as long as it builds, so an open descriptor in /proc is the proof of
    life. Where /proc cannot tell (no Linux, a file system shared with other hosts), age decides.
    """
    deadline = time.monotonic() + timeout_s
    for lock in [*root.glob(f"{name}/lock"), *root.glob(f"*/{name}/lock")]:
        while (holder := _holder(lock)) is not None:
            if time.monotonic() > deadline:
                raise _busy(lock, holder, timeout_s)
            time.sleep(_POLL_S)
        lock.unlink(missing_ok=True)


def _holder(lock: Path) -> str | None:
    """Who holds torch's lock: a pid, or words for another host; None when nobody does."""
    try:
        status = lock.stat()
    except FileNotFoundError:
        return None
    for descriptor in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            found = os.stat(descriptor)
        except OSError:  # ended, or another user's
            continue
        if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
            return descriptor.split("/")[2]
    young = time.time() - status.st_mtime < _FOREIGN_STALE_S
    return "of another host" if young and _is_shared(lock) else None


def _is_shared(path: Path) -> bool:
    """Whether other hosts may write there too: a file system that is not a disk of this machine."""
    try:
        mounts = Path("/proc/mounts").read_text()
    except OSError:
        return True
    best, kind = "", "nfs"
    for line in mounts.splitlines():
        _, point, found, *_ = line.split()
        inside = path.is_relative_to(point.replace("\\040", " "))
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind.startswith(("nfs", "cifs", "smb", "lustre", "ceph", "gpfs", "beegfs", "fuse", "9p"))


def _busy(path: Path, holder: str, timeout_s: float) -> MachineError:
    return MachineError(
        f"process {holder} has been compiling DeepSpeed's ops for more than {timeout_s:g} s",
        where=str(path),
        remedy="wait for it or end it, then start again",
    )
