"""Process groups: who is in one, and ending all of it. By recorded group, never by a pattern."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil

_POLL_S = 0.05


def members(group: int) -> list[psutil.Process]:
    """The living processes of a group; zombies have ended and only wait to be read."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_group(group: int, *, patience_s: float = 5.0) -> bool:
    """Ask every process of the group to end, kill those that have not after `patience_s`.

    True when there was anything left to end.
    """
    if not members(group):
        return False
    for signum, patience in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signum)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not members(group):
                return True
            time.sleep(_POLL_S)
    return True


def kill_group(group: int) -> None:
    """End every process of the group at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
