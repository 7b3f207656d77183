"""Collectives of gloo, whose threads hold tensors for a moment longer than whoever waits for them.

A thread of gloo wakes the waiter first, and lets go of the collective's tensors then: a bucket of
gradients, or a parameter that was gathered and freed, would be live at the next peak, or not, as
the threads happen to run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sized
from typing import Any

import torch
import torch.distributed as dist

_NAP_S = 0.002
_waiting = 0
_real: Callable[..., Any] | None = None


def in_use() -> bool:
    """Whether this process's collectives are gloo's."""
    return dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo"


def settle(dead: Sized) -> None:
    """Sleep until nothing has been added to `dead` for 6 ms, at most 100 ms."""
    quiet, end = 0, time.monotonic() + 0.1
    while quiet < 3 and time.monotonic() < end:
        before = len(dead)
        time.sleep(0.002)
        quiet = quiet + 1 if len(dead) == before else 0


def nap_after_waiting() -> None:
    """Let whoever waits for a collective of gloo sleep for two milliseconds more."""
    global _waiting, _real
    _waiting += 1
    if _waiting == 1 and dist.is_available():
        work = torch._C._distributed_c10d.Work
        _real, work.wait = work.wait, _wait


def stop_napping() -> None:
    """Undo one `nap_after_waiting`."""
    global _waiting
    _waiting -= 1
    if not _waiting and dist.is_available():
        torch._C._distributed_c10d.Work.wait = _real


def _wait(work: Any, *args: Any, **kwargs: Any) -> Any:
    assert _real is not None
    done = _real(work, *args, **kwargs)
    if in_use():
        time.sleep(_NAP_S)
    return done
