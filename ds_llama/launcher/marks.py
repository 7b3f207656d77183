"""How a launch knows what became of its ranks: marks in a folder of the launch, on its machine.

A rank that has done all leaves one itself. What launch.py knows, pids and exit codes, its own
wrapper (`launcher.node`) writes there.

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


def report_started(rank: str, pid: int) -> None:
    """The rank is this process."""
    _write(f"started-{rank}", pid)


def report_ended(rank: str, code: int) -> None:
    """It ended with this code; minus n for signal n."""
    _write(f"ended-{rank}", code)


def started(folder: Path) -> dict[int, int]:
    """pids by rank."""
    return _read(folder, "started")


def ended(folder: Path) -> dict[int, int]:
    """Codes by rank, in the order in which they ended."""
    return _read(folder, "ended")


def _write(name: str, number: int) -> None:
    if FOLDER in os.environ:
        path = Path(os.environ[FOLDER], name)
        with contextlib.suppress(OSError):
            path.with_name(f".{name}").write_text(str(number))
            path.with_name(f".{name}").rename(path)


def _read(folder: Path, kind: str) -> dict[int, int]:
    found = sorted(folder.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime_ns)
    return {int(path.name.rpartition("-")[2]): int(path.read_text()) for path in found}


def unfinished(folder: Path, world_size: int) -> list[int]:
    """The ranks that left no mark."""
    return [rank for rank in range(world_size) if not has_finished(folder, rank)]
