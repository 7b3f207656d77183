"""A rank dies when its launcher does, however that was killed.

DeepSpeed's launch.py ends its children when it is asked to end; when it is killed outright (or the
out-of-memory killer takes it) they train on, holding their devices. Two ties undo that: the
kernel's parent-death signal, and a wait on the process that supervises the whole launch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

SUPERVISOR = "DS_LLAMA_SUPERVISOR"  # pid of the process that runs launch(), in a rank's environment
_PR_SET_PDEATHSIG = 1
_POLL_S = 1.0


def die_with_parent() -> None:
    """Have this process killed when its parent, or the launch's supervisor, ends. Idempotent."""
    parent = os.getppid()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        _watch(parent, lambda: os.getppid() == parent)
    if os.getppid() != parent:  # it died before the kernel knew of our wish
        _die()
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor and supervisor.isdigit() and int(supervisor) != os.getpid():
        _watch(int(supervisor), lambda: _is_alive(int(supervisor)))


def _watch(pid: int, alive: Callable[[], bool]) -> None:
    thread = threading.Thread(target=_wait_for_end, args=(pid, alive), daemon=True)
    thread.name = f"dies with {pid}"
    thread.start()


def _wait_for_end(pid: int, alive: Callable[[], bool]) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        _die()
    except (AttributeError, OSError):  # no Linux, or a sandbox that forbids it
        while alive():
            time.sleep(_POLL_S)
    else:
        select.select([descriptor], [], [])
    _die()


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
