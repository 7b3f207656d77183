"""Signals and sessions: who is in one, and ending all of it, by recorded session, never by pattern.

A child that was started with `start_new_session` leads a session of its own. Its descendants stay
in it whatever process groups they make (ninja gives every compiler one).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import psutil

from ds_llama.errors import MachineError

_POLL_S = 0.05


def allow_open_files(count: int) -> None:
    """Raise this process's limit to `count`, where it is lower: 1024 by default, and a host takes
    three. Raises MachineError where the system does not let it be raised so far."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise MachineError(
            f"{count} files have to be open at once, and {hard} may be",
            where="ulimit -Hn",
            remedy="raise it in /etc/security/limits.conf, or give --launcher pdsh --no-check, "
            "which takes one for each host",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


@contextmanager
def handling(
    signums: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """`handler` for these signals within; nothing outside the main thread, which alone may.

    SIGHUP stays ignored where it is: under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [s for s in signums if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, handler) for signum in taken}
    try:
        yield
    finally:
        for signum, former in before.items():
            signal.signal(signum, former)


def members(session: int) -> list[psutil.Process]:
    """The living processes of a session; zombies have ended and only wait to be read."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_session(session: int, *, patience_s: float = 5.0) -> bool:
    """Ask every process of the session to end, kill those that have not after `patience_s`.

    True when there was anything left to end.
    """
    if not members(session):
        return False
    for signum, patience in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 10.0)):
        _signal_all(session, signum)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not members(session):
                return True
            time.sleep(_POLL_S)
    return True


def kill_session(session: int) -> None:
    """End every process of the session at once."""
    _signal_all(session, signal.SIGKILL)


def _signal_all(session: int, signum: signal.Signals) -> None:
    for process in members(session):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signum)
