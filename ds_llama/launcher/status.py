"""Exit codes as a shell has them."""

from __future__ import annotations

import signal


def exit_code(code: int) -> int:
    """A shell's exit code for what the launcher's exit says.

    launch.py leaves with its rank's negative code, which the system cuts to 8 bits: a rank that
    signal 9 killed gives 256 - 9 = 247.
    """
    if code < 0:
        return 128 - code
    return 128 + (256 - code) if code > 256 - signal.NSIG else code
