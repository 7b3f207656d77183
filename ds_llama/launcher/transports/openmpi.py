"""Open MPI's mpirun, which starts and ends the ranks itself.

DeepSpeed's runner for it (deepspeed/launcher/multinode_runner.py:162) refuses --include, reads no
host but the hostfile's, wants an interface named eth0, and wraps an exported value in quotes that
no shell takes off. And the ranks would find each other by mpi4py.
"""

from __future__ import annotations

import os
import shlex

from ds_llama.launcher.job import Job
from ds_llama.launcher.transports import SSH_OPTIONS, mpi

NAMES = ("mpirun.openmpi", "mpirun")


def commands(job: Job) -> list[list[str]]:
    """One argv; what it exports (-x) is in `environment(job)`."""
    ssh = shlex.join(["ssh", "-T", *SSH_OPTIONS])
    words = [mpi.find(NAMES), "-n", str(job.world_size), "--host", mpi.placement(job, "openmpi")]
    # Ranks in the order of the hostfile. Unbound: it would tie all threads of a rank to one core.
    words += ["--map-by", "slot", "--bind-to", "none"]
    words += ["--mca", "plm_rsh_agent", ssh, "--wdir", job.cwd]
    if os.geteuid() == 0:  # which the other launchers do not mind either
        words.append("--allow-run-as-root")
    for name in sorted(mpi.exported(job)):
        words += ["-x", name]
    return [[*words, *mpi.rank(job)]]


def environment(job: Job) -> dict[str, str]:
    """What mpirun's environment has more than ours."""
    return mpi.exported(job)


def require() -> None:
    """Raises MachineError where Open MPI is not."""
    mpi.require(mpi.find(NAMES), ("Open MPI", "OpenRTE"), "openmpi")
