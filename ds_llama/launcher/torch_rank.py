"""`python -m ds_llama.launcher.torch_rank LOGS MODULE ARGUMENT…`: a rank that torchrun has started.

It tells the rank what DeepSpeed's launch.py tells its own and torchrun does not, has it write into
a file named as launch.py names them, and leaves the marks of `launcher.node`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ds_llama.launcher import marks
from ds_llama.launcher.child import Child, open_log
from ds_llama.launcher.orphan import SUPERVISOR, die_with_parent
from ds_llama.launcher.status import exit_code


def main(argv: Sequence[str]) -> int:
    """Run `python -u -m MODULE ARGUMENT…` as a child; its exit code, 128 + n for signal n."""
    logs, module, *arguments = argv
    child, rank = Child(), os.environ["RANK"]
    die_with_parent()
    with open_log(logs, rank) as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    names = {"LOCAL_WORLD_SIZE": "LOCAL_SIZE", "GROUP_RANK": "CROSS_RANK"}
    names["GROUP_WORLD_SIZE"] = "CROSS_SIZE"
    found = {ours: os.environ[theirs] for theirs, ours in names.items()}
    code = child.run(
        [sys.executable, "-u", "-m", module, *arguments],
        {**os.environ, **found, SUPERVISOR: str(os.getpid())},
        lambda pid: marks.report_started(rank, pid),
    )
    marks.report_ended(rank, code)
    return exit_code(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
