"""`python -m ds_llama.launcher.torch_rank LOGS MODULE ARGUMENT…`: a rank that torchrun has started.

It tells the rank what DeepSpeed's launch.py tells its own and torchrun does not, has it write into
a file named as launch.py names them, and becomes it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    """Becomes `python -u -m MODULE ARGUMENT…`."""
    logs, module, *arguments = argv
    Path(logs).mkdir(parents=True, exist_ok=True)
    name = f"{time.strftime('%Y%m%d%H%M%S')}_rank{os.environ['RANK']}.log"
    with open(Path(logs, name), "wb") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    names = {"LOCAL_WORLD_SIZE": "LOCAL_SIZE", "GROUP_RANK": "CROSS_RANK"}
    names["GROUP_WORLD_SIZE"] = "CROSS_SIZE"
    os.environ.update({ours: os.environ[theirs] for theirs, ours in names.items()})
    os.execv(sys.executable, [sys.executable, "-u", "-m", module, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
