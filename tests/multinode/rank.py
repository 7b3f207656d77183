"""A rank that does as it is told, without torch: `python -m tests.multinode.rank FOLDER DEED …`.

It writes what it was given into FOLDER/rank-N.json. The deed is one of

- show: ends well.
- fail=N:CODE: rank N exits with the code, or is killed by signal -CODE; the others wait for ever.
- wait: all wait; on SIGTERM they write FOLDER/saved-N and exit with 143.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from ds_llama.launcher.orphan import die_with_parent


def main(folder: Path, deed: str) -> int:
    """The deed; the exit code."""
    die_with_parent()
    rank = int(os.environ["RANK"])

    def save(signum: int, frame: FrameType | None) -> None:
        (folder / f"saved-{rank}").touch()
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, save)
    seen = {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid()}
    seen["host"] = os.uname().nodename
    temporary = folder / f"rank-{rank}.tmp"
    temporary.write_text(json.dumps(seen))
    temporary.rename(folder / f"rank-{rank}.json")
    name, _, how = deed.partition("=")
    if name == "show":
        return 0
    if name == "fail":
        who, code = map(int, how.split(":"))
        if rank == who:
            if code < 0:
                os.kill(os.getpid(), -code)
            return code
    while True:
        time.sleep(0.1)


if __name__ == "__main__":
    if sys.argv[1].startswith("--local_rank="):  # DeepSpeed's launch.py
        del sys.argv[1]
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
