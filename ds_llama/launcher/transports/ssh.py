"""ssh, one child a host. The agent speaks with us through it: no port, nothing in clear."""

from __future__ import annotations

from ds_llama.launcher.job import Job
from ds_llama.launcher.transports import SSH_OPTIONS, agent


def commands(job: Job) -> list[list[str]]:
    """One argv a host, in the job's order; each speaks the agent's protocol on stdin and stdout."""
    # `--`: whatever the name is, it is no option.
    return [
        ["ssh", "-T", *SSH_OPTIONS, "--", host.name, agent(job, [str(index)])]
        for index, host in enumerate(job.hosts)
    ]
