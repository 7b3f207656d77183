"""How a launch knows that its ranks finished: each leaves a mark in a folder of the launch.

launch.py exits 0 when all its ranks have, and so does a rank whose library has called `exit(0)`;
DeepSpeed's runner drops a negative return code. An exit code of 0 proves nothing. The folder's path
reaches the ranks in the variable DS_LLAMA_LAUNCH.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FOLDER = "DS_LLAMA_LAUNCH"
# What gloo and NCCL say of a rank that is gone.
LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")


def report_finished() -> None:
    """Called by a rank that has done all it had to do."""
    with contextlib.suppress(OSError):  # the launch is gone: nobody is there to read it
        Path(os.environ[FOLDER], f"finished-{os.environ['RANK']}").touch()


def has_finished(folder: Path, rank: int) -> bool:
    """Whether the rank left its mark."""
    return (folder / f"finished-{rank}").exists()


def unfinished(folder: Path, world_size: int) -> list[int]:
    """The ranks that left no mark."""
    return [rank for rank in range(world_size) if not has_finished(folder, rank)]
