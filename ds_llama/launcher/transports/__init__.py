"""Ways to start something on every host: one module each.

`commands(job, …)` of each gives argv to run here. `ssh` and `pdsh` start an agent on each host
(`launcher.agent`), by which the ranks are supervised.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from ds_llama.launcher.job import Job, module_path

CONNECT_S = 20
# Before any host's own settings: never ask a person, give up on a host that does not answer, and
# notice one that has gone silent.
SSH_OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={CONNECT_S}"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
)


def agent(job: Job, words: Sequence[str]) -> str:
    """The line for the other host's shell that becomes the agent there, quoted for any sh."""
    path = os.pathsep.join(module_path(os.environ))
    argv = ["exec", "env", f"PYTHONPATH={path}", "PYTHONUNBUFFERED=1", job.python]
    return shlex.join([*argv, "-m", "ds_llama.launcher.agent", *words])
