"""pdsh over ssh, one child for all hosts. It passes no stdin on: the agents connect back."""

from __future__ import annotations

import shlex

from ds_llama.launcher.job import Job
from ds_llama.launcher.transports import SSH_OPTIONS, agent

_FAN_OUT = "1024"  # as DeepSpeed's PDSH_MAX_FAN_OUT: fewer would start hosts one after another


def commands(job: Job, port: int = 0, token: str = "TOKEN") -> list[list[str]]:
    """One argv. `port` and `token`: where the agents report and how they show whose they are.

    The token stands on the hosts' process lists; who reads it there may take one agent's place, and
    gets to see the job and its environment. ssh has no such place.
    """
    # pdsh puts the host's number for %n, and reads every other % as a sign of its own.
    words = ["--connect", str(port), "--token", token]
    line = agent(job, words).replace("%", "%%") + " %n"
    hosts = ",".join(host.name for host in job.hosts)
    return [["pdsh", "-S", "-R", "ssh", "-f", _FAN_OUT, "-w", hosts, line]]


def environment() -> dict[str, str]:
    """How pdsh is told of ssh's options."""
    return {"PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": shlex.join(SSH_OPTIONS)}
