"""Exit codes as a shell has them."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def exit_code(code: int) -> int:
    """A shell's exit code for what the launcher's exit says.

    launch.py leaves with its rank's negative code, which the system cuts to 8 bits: a rank that
    signal 9 killed gives 256 - 9 = 247.
    """
    if code < 0:
        return 128 - code
    return 128 + (256 - code) if code > 256 - signal.NSIG else code


def of_zombie(pid: int) -> int | None:
    """The exit code of a process that has ended while its parent has not asked for it yet.

    None when it runs, or is gone. See `exit_code`, the 52nd field, in proc(5).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    if fields[0] not in ("Z", "X"):
        return None
    return exit_code(os.waitstatus_to_exitcode(int(fields[49])))
